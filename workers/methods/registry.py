"""Find what learns a model: the policy of its spec, or the method that the spec names."""

import importlib
from collections.abc import Mapping

from cmcl.contract.errors import UnknownMethod
from cmcl.contract.methods import BUILT_IN_METHODS, METHOD_ENTRY_POINTS, installed_methods
from cmcl.contract.model import ModelSpec
from workers.methods.improve import Improve
from workers.methods.method import Method, Vanilla
from workers.methods.preserve import Preserve

_BUILT_IN: Mapping[str, type[Method]] = {
    "improve": Improve,
    "preserve": Preserve,
    "vanilla": Vanilla,
}


def method_for(spec: ModelSpec) -> Method:
    """The policy of a model's spec, or its method: built in, or an entry point of an installed package.

    Raises UnknownMethod.
    """
    built_in = _BUILT_IN.get(spec.learning)
    if built_in is not None:
        return built_in.from_spec(spec)
    point = installed_methods().get(spec.learning)
    if point is None:
        known = ", ".join([*BUILT_IN_METHODS, *installed_methods()])
        raise UnknownMethod(
            f"the method {spec.method!r} is not installed where this model is trained; known here: "
            f"{known}. Install the package that has it under the entry point group "
            f"{METHOD_ENTRY_POINTS!r} in the workers' image"
        )
    return method_class(point.value).from_spec(spec)


def method_class(place: str) -> type[Method]:
    """Import the method at `module:Class`. Raises UnknownMethod if there is none."""
    module, _, name = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownMethod(f"the method {place!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UnknownMethod(f"{place!r} is not a subclass of workers.methods.method.Method")
    return found
