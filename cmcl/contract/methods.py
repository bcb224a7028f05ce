"""The methods that a model can use in place of a policy, and the priorities of its attempts.

Without pydantic, which the driver of an attempt does not import.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Literal

BUILT_IN_METHODS = ("vanilla",)
METHOD_ENTRY_POINTS = "cmcl.methods"
# Priority of an attempt.
Priority = Literal["low", "normal", "high"]


def installed_methods() -> dict[str, EntryPoint]:
    """Methods of other installed packages, by name, without importing them.

    Built-in names cannot be overridden. As with imports, the first package on the path wins.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=METHOD_ENTRY_POINTS):
        if point.name not in BUILT_IN_METHODS:
            found.setdefault(point.name, point)
    return found
