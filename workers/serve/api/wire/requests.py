"""JSON bodies and query parameters of requests: their types, and the messages for errors.

msgspec decodes a body into structs in one pass, and stops at the first value of a wrong type. It counts the entries of a
list only once it has made them all, and no other thread runs until then: how much a body can make is bounded before.

Shapes: B rows, F width of the raw feature.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import msgspec
import numpy as np
from msgspec import Meta

from cmcl.contract.encoder import WIDEST_FEATURE
from workers.serve.errors import InvalidRequest, shortened

Encoding = Literal["float", "base64"]
# Items of one page of a list, and how many may come before it.
MOST_LISTED, LARGEST_OFFSET = 200, 2**31 - 1
S = TypeVar("S", bound=msgspec.Struct)

# Of a body of more bytes no wrong value is looked up for its message.
_MOST_NAMED = 256 << 10
# Decoded in 0.1 and 0.2 s at most.
_MOST_LISTS, _MOST_VALUES = 1 << 18, 1 << 22
# What is counted, how much is permitted, and how many bytes one takes at least.
_COUNTED = ((b"[{", _MOST_LISTS, 3, "lists and objects"), (b",", _MOST_VALUES, 2, "values"))
_PIECE = 1 << 17
_PROBLEM = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", re.DOTALL)
_STEPS = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
_WORDS = {
    "float": "a number",
    "int": "a whole number",
    "str": "a string",
    "bool": "a boolean",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_KINDS = {float: "a number", str: "a string", list: "a list"}
_CONTENTS = ("feature", "text", "data", "numbers")

Feature = Annotated[list[float], Meta(max_length=WIDEST_FEATURE)]
AtLeastOne = Annotated[int, Meta(ge=1)]


class Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a request has, in JSON or as query parameters. `INSIDE`: the type of the objects in it."""

    INSIDE: ClassVar[type[msgspec.Struct] | None] = None


class Item(Body, kw_only=True):
    """One item of one modality: its feature, or a raw item for the encoder that the modality is bound to."""

    modality: Annotated[str, Meta(examples=["image"])]
    feature: Annotated[
        Feature | str | None,
        Meta(description="as an encoder gave it; a string is base64 of float32, little endian"),
    ] = None
    text: Annotated[str | None, Meta(description="where the encoder takes texts")] = None
    data: Annotated[
        str | None,
        Meta(description="base64 of a file, where the encoder takes images, audio or video"),
    ] = None
    numbers: Annotated[
        Feature | None,
        Meta(description="where the encoder takes numbers, such as latitude and longitude"),
    ] = None

    def __post_init__(self) -> None:
        given = [name for name in _CONTENTS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"has {' and '.join(given) or 'none'}; permitted is exactly one of {', '.join(_CONTENTS)}"
            )


class EmbeddingOptions(Body, kw_only=True):
    """All fields of a request but its input."""

    INSIDE = Item

    model: Annotated[
        str,
        Meta(description="name, or name@version for exactly that one", examples=["street-scenes"]),
    ]
    modality: Annotated[
        str | None,
        Meta(
            description="of all rows; by default `text` where the input is texts; omit it where "
            "each item has its own",
            examples=["image"],
        ),
    ] = None
    encoding_format: Annotated[Encoding, Meta(description="base64: float32, little endian")] = (
        "float"
    )
    normalize: Annotated[bool, Meta(description="unit length; false: the outputs of the head")] = (
        True
    )
    dimensions: Annotated[
        AtLeastOne | None,
        Meta(
            description="how many numbers of each embedding to return, the first ones, at unit length; at most "
            "the model's width, which is the default. Fewer only from heads of the policy improve, which order "
            "them by how much they tell"
        ),
    ] = None
    user: Annotated[
        Annotated[str, Meta(max_length=256)] | None,
        Meta(description="the end user, as OpenAI's clients send it; ignored"),
    ] = None


class EmbeddingRequest(EmbeddingOptions, kw_only=True):
    """Features of one modality, texts, or items of several modalities; answered by one version."""

    input: Annotated[
        str | list[float | Feature | str | Item],
        Meta(description="one feature or several, one text or several, or items"),
    ]


def entries_of(given: str | list[Any]) -> list[Any]:
    """Return the entries of an input, which are of one kind. One text or one feature is an input by itself.

    Raises InvalidRequest.
    """
    entries = [given] if isinstance(given, str) else given
    kinds = {*map(type, entries)}
    if len(kinds) > 1:
        first = type(entries[0])
        index = next(index for index, each in enumerate(entries) if type(each) is not first)
        found = shortened(msgspec.to_builtins(entries[index]))
        raise InvalidRequest(
            f"input[{index}] is {found}; permitted is {_KINDS.get(first, 'an object')}, as input[0] is",
            "input",
        )
    return [entries] if kinds == {float} else entries


def parse(model: type[S], body: bytes) -> S:
    """Decode a JSON body. Raises InvalidRequest."""
    _check_bounds(body)
    try:
        return msgspec.json.decode(body, type=model)
    except msgspec.ValidationError as error:
        raise _invalid_request(error, model, _document(body)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        raise InvalidRequest(
            f"the body is not JSON: {reason}; NaN, Infinity and comments are no part of it",
            None,
            "invalid_json",
        ) from None


def parse_parameters(model: type[S], parameters: Mapping[str, str]) -> S:
    """Parse query parameters. Raises InvalidRequest."""
    try:
        return msgspec.convert(parameters, model, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid_request(error, model, parameters) from None


def parse_object(raw: msgspec.Raw, where: str, most: int, times: int = 1) -> dict[str, Any] | None:
    """Decode an object inside a body; None: it is null or omitted. Raises InvalidRequest.

    `most`: bytes of it; `times` as many as it was sent, with spaces and escapes.
    """
    text = bytes(raw)
    if text in (b"", b"null"):
        return None
    field, _, _ = where.partition("[")
    if len(text) > times * most:
        raise InvalidRequest(f"{where} has {len(text)} bytes; permitted are {most}", field)
    try:
        found: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.ValidationError, RecursionError) as error:
        problem, _ = _parts(str(error))
        raise InvalidRequest(
            f"{where} is {shortened(_document(text))}: {problem}; permitted is an object whose numbers fit "
            "into 64 bits",
            field,
        ) from None
    return found


def parse_number(text: str, where: str, smallest: int, largest: int) -> int:
    """A whole number in a parameter. Raises InvalidRequest."""
    # The length first: int() raises ValueError for thousands of digits.
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(largest))
    if not is_number or not smallest <= int(text) <= largest:
        raise InvalidRequest(
            f"{where} is {shortened(text)}; permitted are whole numbers from {smallest} to {largest}",
            param=where,
        )
    return int(text)


def _check_bounds(body: bytes) -> None:
    """Raises InvalidRequest for a large body of more lists or values than are decoded in a moment."""
    for marks, most, least, what in _COUNTED:
        # Those in texts, too: the second count is exact, and takes longer.
        if len(body) > least * most and _count(body, marks) > most:
            found = _count_outside_texts(body, marks)
            if found > most:
                raise InvalidRequest(
                    f"the body has {found} {what}; permitted are {most}: send fewer rows in one request, or features "
                    "as base64, raw floats or Arrow"
                )


def _count(body: bytes, marks: bytes) -> int:
    """By numpy, which lets other threads run, in pieces that the processor's caches hold."""
    characters, found = np.frombuffer(body, np.uint8), 0
    for start in range(0, len(body), _PIECE):
        piece = characters[start : start + _PIECE]
        found += sum(int(np.count_nonzero(piece == mark)) for mark in marks)
    return found


def _count_outside_texts(document: bytes, marks: bytes) -> int:
    """How many of these characters stand outside of quotes."""
    without_escapes = document.replace(rb"\\", b"").replace(rb"\"", b"")
    characters = np.frombuffer(without_escapes, np.uint8)
    is_kept = characters == ord('"')
    for mark in marks:
        is_kept |= characters == mark
    is_quote = characters[is_kept] == ord('"')
    is_outside = ~np.logical_xor.accumulate(is_quote)
    return int(np.count_nonzero(is_outside & ~is_quote))


def _document(body: bytes) -> object:
    """Return what a body has, to name a wrong value; None for a large one, and one that is no JSON further on."""
    try:
        return msgspec.json.decode(body) if len(body) <= _MOST_NAMED else None
    except (msgspec.DecodeError, RecursionError):
        return None


def _invalid_request(
    error: msgspec.ValidationError, model: type[msgspec.Struct], document: object
) -> InvalidRequest:
    problem, where = _parts(str(error))
    fields = ", ".join(model.__struct_fields__)
    named = re.search(r"`(.*)`", problem, re.DOTALL)
    if problem.startswith("Object "):  # A missing or an unknown field.
        name = named[1] if named else ""
        path = f"{where}.{name}" if where else name
        inside = getattr(model, "INSIDE", None)
        if problem.startswith("Object missing"):
            message = f"the field {path!r} is missing" + (
                "" if where else f"; permitted are {fields}"
            )
        else:
            permitted = ", ".join(inside.__struct_fields__) if where and inside else fields
            message = f"there is no field {shortened(path)}; permitted are {permitted}"
        return InvalidRequest(message, _field(path))
    if not where:
        return InvalidRequest(f"the body must be a JSON object with the fields {fields}")
    field = _field(where)
    if problem.startswith("has "):  # By `__post_init__`.
        return InvalidRequest(f"{where} {problem}", field)
    found = shortened(_value(document, where)) if document is not None else "not permitted"
    return InvalidRequest(
        f"{where} is {found}; permitted is {_permitted(problem, field, model)}", field
    )


def _parts(problem: str) -> tuple[str, str]:
    """Return what is wrong and where, a path into the body: `input[2].feature[7]`."""
    found = _PROBLEM.fullmatch(problem)
    assert found is not None
    return found[1], found[2] or ""


def _field(path: str) -> str:
    return re.split(r"[.\[]", path, maxsplit=1)[0]


def _value(document: Any, path: str) -> object:
    try:
        for index, name in _STEPS.findall(path):
            document = document[int(index)] if index else document[name]
    except (KeyError, IndexError, TypeError):
        return None
    return document


def _permitted(problem: str, field: str, model: type[msgspec.Struct]) -> str:
    """Return what msgspec expected, as a message says it."""
    if problem.startswith("Invalid enum value"):
        kinds = {each.name: each.type for each in msgspec.structs.fields(model)}
        return " or ".join(map(repr, _literals(kinds[field])))
    if "out of range" in problem:
        return "a finite number, and a whole one of up to 64 bits"
    expected = problem.removeprefix("Expected ").partition(", got ")[0]
    return re.sub(
        r"`([^`]*)`",
        lambda kinds: " or ".join(_WORDS.get(each, each) for each in kinds[1].split(" | ")),
        expected,
    )


def _literals(kind: Any) -> Iterable[str]:
    """Return the values of the Literal in a type."""
    for each in get_args(kind):
        if isinstance(each, str):
            yield each
        else:
            yield from _literals(each)
