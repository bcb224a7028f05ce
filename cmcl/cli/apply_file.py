"""The file of `cmcl apply`: which models, gates, webhooks and keys there should be.

A field that the file does not have is not managed: it stays as it is, or has its default in what is
created. A section that the file does not have (`models`, `webhooks`, `keys`) is not managed either.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from cmcl.client import InvalidArgument
from cmcl.contract.encoder import EncoderName, FeatureWidth
from cmcl.contract.event import EventKind
from cmcl.contract.gate import Gate
from cmcl.contract.modality import (
    MODALITY_PATTERN,
    NAME_PATTERN,
    Frozen,
    Modality,
    ModelName,
)
from cmcl.contract.model import ModelOptions, as_modality, check_two_modalities

Scope = Literal["read", "write", "train", "admin", "embed"]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]

_PATTERNS = {
    NAME_PATTERN: "lower-case letters, digits and inner hyphens, 1 to 48 characters",
    MODALITY_PATTERN: "a lower-case letter, then lower-case letters, digits and underscores, 32 "
    "characters at most",
}


class ModalityEntry(Frozen):
    """A modality: the width of its features, or the encoder that computes them, or both."""

    width: FeatureWidth | None = None
    encoder: EncoderName | None = None

    @model_validator(mode="after")
    def _has_a_width(self) -> Self:
        if self.width is None and self.encoder is None:
            raise ValueError("it has neither a width nor an encoder: give one of them")
        return self


class ModelEntry(ModelOptions):
    """A model: its specification, which is fixed when it is created, and its gate."""

    modalities: Annotated[
        dict[Modality, Annotated[ModalityEntry, BeforeValidator(as_modality)]],
        Field(min_length=2, max_length=64),
        BeforeValidator(check_two_modalities),
    ]
    gate: Gate | None = None


class WebhookEntry(Frozen):
    """An address that receives events. `kinds`: default those that need action."""

    url: str = Field(min_length=1)
    kinds: tuple[EventKind, ...] | None = Field(default=None, min_length=1)
    model: ModelName | None = None
    every_owner: bool = False

    @model_validator(mode="after")
    def _is_of_one_model_or_all(self) -> Self:
        if self.every_owner and self.model:
            raise ValueError("model and every_owner exclude each other: leave one of them out")
        return self


class KeyEntry(Frozen):
    """A key. The file never has its secret."""

    name: Name
    scopes: tuple[Scope, ...] = Field(min_length=1)
    owner: Name | None = None
    expires_in_days: int | None = Field(
        default=None, ge=1, le=3650, description="when the key is created; default: never"
    )


class DesiredState(Frozen):
    """The whole file. None: the section is not managed."""

    models: dict[ModelName, ModelEntry] | None = None
    webhooks: tuple[WebhookEntry, ...] | None = None
    keys: tuple[KeyEntry, ...] | None = None

    @model_validator(mode="after")
    def _entries_differ(self) -> Self:
        _check_distinct("webhooks", [(w.url, w.model, w.every_owner) for w in self.webhooks or ()])
        _check_distinct("keys", [(key.name, key.owner) for key in self.keys or ()])
        return self


def read_file(path: Path) -> DesiredState:
    """Parse and check a file. Raises InvalidArgument with each wrong field and what is permitted."""
    try:
        text = path.read_text("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_keys(path, node)
        values = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path} is not a text file in UTF-8: {error}") from error
    except yaml.YAMLError as error:
        raise InvalidArgument(
            f"{path} is not valid YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(values, dict):
        sections = ", ".join(DesiredState.model_fields)
        raise InvalidArgument(f"{path} has no section; permitted: {sections}")
    try:
        return DesiredState.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise InvalidArgument(f"{path}: " + "; ".join(map(_message, found))) from error


def _check_distinct(section: str, identities: Sequence[tuple[object, ...]]) -> None:
    for index, identity in enumerate(identities):
        first = identities.index(identity)
        if first != index:
            raise ValueError(f"{section}[{index}] and {section}[{first}] are the same: {identity}")


def _check_keys(path: Path, root: Any) -> None:
    """Check that no mapping has a key twice, of which YAML would silently take the last.

    Aliases are refused: a file of few lines can stand for more than memory holds.
    """
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            line = node.start_mark.line + 1
            raise InvalidArgument(f"{path}:{line}: aliases are not permitted; repeat the value")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key, value in node.value:
                if names.count(key.value) > 1:
                    line = key.start_mark.line + 1
                    raise InvalidArgument(f"{path}:{line}: {key.value!r} is given twice")
                waiting.append(value)
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _message(error: Any) -> str:
    """Name the field, what is wrong, and what is permitted."""
    location = [part for part in error["loc"] if part != "[key]"]
    where = _path(location)
    if error["type"] == "extra_forbidden":
        permitted = ", ".join(_fields_beside(location))
        return f"{where}: there is no such field; permitted: {permitted}"
    if error["type"] == "string_pattern_mismatch":
        pattern = error["ctx"]["pattern"]
        return f"{where}: {error['input']!r}; permitted: {_PATTERNS.get(pattern, pattern)}"
    if error["type"] in ("missing", "value_error"):
        message = error["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else str(message)
    return f"{where}: {error['input']!r}: {error['msg']}"


def _path(location: Sequence[str | int]) -> str:
    """("webhooks", 0, "url") becomes webhooks[0].url."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".")


def _fields_beside(location: Sequence[str | int]) -> list[str]:
    """Return the fields of the object in which the last part of the location is."""
    kind: type[BaseModel] = DesiredState
    parts = iter(location[:-1])
    for part in parts:
        annotation = kind.model_fields[str(part)].annotation
        inner = next(_models_in(annotation), None)
        if inner is None:
            break
        kind = inner
        if _is_collection(annotation):
            next(parts, None)
    return sorted(kind.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _is_collection(annotation: Any) -> bool:
    parts = (annotation, *get_args(annotation))
    return any(get_origin(part) in (dict, tuple) for part in parts)
