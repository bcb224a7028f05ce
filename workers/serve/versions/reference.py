"""How requests name a version: `name`, or `name@number`."""

import json
import re
from dataclasses import dataclass

from cmcl.contract.modality import NAME_PATTERN
from workers.serve.errors import InvalidRequest

_VERSION_PATTERN = r"[1-9][0-9]{0,8}"
_LONGEST_VALUE = 60


@dataclass(frozen=True)
class ModelReference:
    """`name`: whatever is live. `name@version`: that version and no other."""

    name: str
    version: int | None


def parse_reference(text: str) -> ModelReference:
    """Raises InvalidRequest."""
    name, at, version = text.partition("@")
    if not re.fullmatch(NAME_PATTERN, name) or (at and not re.fullmatch(_VERSION_PATTERN, version)):
        raise InvalidRequest(
            f"model is {shortened(text)}; permitted is a name of lower-case letters, digits and "
            "inner hyphens, up to 48 characters, optionally followed by @ and a version from 1",
            param="model",
        )
    return ModelReference(name, int(version) if at else None)


def parse_version(text: str | None, where: str) -> int:
    """A version in a header or parameter; 0 where it is absent. Raises InvalidRequest."""
    if text is None:
        return 0
    if not re.fullmatch(_VERSION_PATTERN, text):
        raise InvalidRequest(
            f"{where} is {shortened(text)}; permitted is a version from 1", param=where
        )
    return int(text)


def shortened(value: object) -> str:
    """The user's value as it may stand in a message."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        names = ", ".join(map(repr, value))[:_LONGEST_VALUE]
        return f"an object with {names or 'no fields'}"
    text = json.dumps(value[:_LONGEST_VALUE] if isinstance(value, str) else value, default=str)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
