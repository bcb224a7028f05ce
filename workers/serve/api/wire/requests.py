"""JSON bodies of requests: their models, a fast path for features, bounds, and the messages for errors.

simdjson parses a body once. Features alone are read from that into an array, in a third of the time of making a list of
numbers. Any other body is bounded by what simdjson shows of it, and then parsed by pydantic. Pydantic makes an object of
every value, even of one that it refuses, and no other thread runs meanwhile: 64 MiB of empty lists were 20 s in which a
replica answered no request.

Shapes: B rows, F width of the raw feature.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, TypeVar, cast

import numpy as np
import pybase64
import simdjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from cmcl.contract.encoder import WIDEST_FEATURE
from workers.serve.collections.filters import DEEPEST, MOST_CONDITIONS, MOST_VALUES
from workers.serve.errors import InvalidRequest, shortened

# Validation inside the parser is what makes lists of floats cheap: it costs 2 us per 1280 numbers
# on top of 45 us of parsing, json.loads alone 390 us. `fail_fast`, because otherwise a body of a
# million wrong entries makes a million error records.
Feature = Annotated[list[float], Field(fail_fast=True)]
_Features = Annotated[list[Feature], Field(fail_fast=True)]
_Texts = Annotated[list[str], Field(fail_fast=True)]

Encoding = Literal["float", "base64"]
# Items of one page of a list, and how many may come before it.
MOST_LISTED, LARGEST_OFFSET = 200, 2**31 - 1
# Bytes allowed for a list or object in an item without payload; the parser rejects it later.
_MOST_BYTES = 4096
M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

# More than any request has; each unknown field would become a record of an error.
_MOST_FIELDS = 64
# Parsed in 50 ms. Each of 4096 items may have 16 in its payload.
_MOST_NESTED = 1 << 16
# Pydantic takes less than 0.1 s for any body of this size, and a few milliseconds for most.
_MOST_UNSCANNED_BYTES = 256 << 10
# Commas and brackets of conditions, each of which may be inside others.
_MOST_IN_FILTER = MOST_CONDITIONS * (MOST_VALUES + 4 * DEEPEST)
# simdjson writes 1e23 as 9.999999999999999e+22.
_LONGER_NUMBERS = 4
# More rows than any replica takes on at once.
_MOST_ROWS = 1 << 16
# What simdjson raises for bodies that are no JSON, or are more than it reads: integers beyond 64 bits.
_NOT_JSON = (ValueError, RuntimeError)
# And for entries that are no numbers.
_NOT_PLAIN = (*_NOT_JSON, TypeError, KeyError, ValidationError)
_FIELDS_OF_PLAIN_ITEM = ("modality", "feature")
_FEATURES = ("feature", "numbers")
Nested = simdjson.Array | simdjson.Object

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_UNREADABLE = (
    "the body is not JSON that is read here: it is cut off, a comma, bracket or quote is missing or one too many, or it has "
    f"NaN, Infinity or an integer of more than 64 bits; of a body of up to {_MOST_UNSCANNED_BYTES} bytes the error would say "
    "where"
)
_CONTENTS = ("feature", "text", "data", "numbers")


class Item(BaseModel):
    """One item of one modality: its feature, or a raw item for the encoder that the modality is bound to."""

    model_config = STRICT

    modality: str = Field(examples=["image"])
    feature: Feature | str | None = Field(
        default=None,
        description="as an encoder gave it; a string is base64 of float32, little endian",
    )
    text: str | None = Field(default=None, description="where the encoder takes texts")
    data: str | None = Field(
        default=None,
        description="base64 of a file, where the encoder takes images, audio or video",
    )
    numbers: Feature | None = Field(
        default=None,
        description="where the encoder takes numbers, such as latitude and longitude",
    )

    @model_validator(mode="after")
    def _has_one_content(self) -> Self:
        given = [name for name in _CONTENTS if getattr(self, name) is not None]
        if len(given) != 1:
            raise PydanticCustomError(
                "one_content",
                "exactly one of feature, text, data and numbers; it has {given}",
                {"given": " and ".join(given) or "none"},
            )
        return self


Items = Annotated[list[Item], Field(fail_fast=True)]


class EmbeddingOptions(BaseModel):
    """All fields of a request but its input."""

    model_config = STRICT

    model: str = Field(
        description="name, or name@version for exactly that one", examples=["street-scenes"]
    )
    modality: str | None = Field(
        default=None,
        description="of all rows; by default `text` where the input is texts; omit it where "
        "each item has its own",
        examples=["image"],
    )
    encoding_format: Encoding = Field(default="float", description="base64: float32, little endian")
    normalize: bool = Field(default=True, description="unit length; false: the outputs of the head")
    dimensions: int | None = Field(
        default=None,
        ge=1,
        description="how many numbers of each embedding to return, the first ones, at unit length; at most "
        "the model's width, which is the default. Fewer only from heads of the policy improve, which order "
        "them by how much they tell",
    )
    user: str | None = Field(
        default=None,
        max_length=256,
        description="the end user, as OpenAI's clients send it; ignored",
    )


class EmbeddingRequest(EmbeddingOptions):
    """Features of one modality, texts, or items of several modalities; answered by one version."""

    input: Annotated[
        Feature | _Features | str | _Texts | Items, Field(union_mode="left_to_right")
    ] = Field(description="one feature or several, one text or several, or items")

    @property
    def texts(self) -> list[str] | None:
        """The input, where it is texts."""
        if isinstance(self.input, str):
            return [self.input]
        return _of_kind(self.input, str)

    @property
    def items(self) -> list[Item] | None:
        """The input, where it is items."""
        return None if isinstance(self.input, str) else _of_kind(self.input, Item)

    @property
    def rows(self) -> list[list[float]]:
        """The input, where it is features; one alone may be a plain list."""
        if not self.input or isinstance(self.input, str):
            return []
        several: list[list[float]] | None = _of_kind(self.input, list)
        return [self.input] if several is None else several  # type: ignore[list-item]

    @property
    def count(self) -> int:
        return len(self.items or self.texts or self.rows)


def _of_kind(entries: list[Any], kind: type[T]) -> list[T] | None:
    """The entries, if they are of this kind; the parser has checked that all are of one kind."""
    return entries if entries and isinstance(entries[0], kind) else None


@dataclass(frozen=True)
class ScannedBody:
    """A body and what simdjson reads in it. `is_json`: whether simdjson takes the body."""

    body: bytes
    document: object
    is_json: bool = True


def scan(body: bytes) -> ScannedBody:
    """Parse the body once. Never raises."""
    try:
        return ScannedBody(body, simdjson.Parser().parse(body))
    except _NOT_JSON:
        return ScannedBody(body, None, is_json=False)


@dataclass(frozen=True)
class ModalityRows:
    """Features of one modality (B × F), and their positions among all rows of the request."""

    modality: str
    rows_BF: NDArray[np.float32]
    positions_B: NDArray[np.int64]


@dataclass(frozen=True)
class PlainRequest:
    """A request whose input is features alone: one list of numbers, lists of equal length, or items with base64.

    `features`: the lists as an array (B × F), or the items by modality.
    """

    options: EmbeddingOptions
    features: NDArray[np.float64] | list[ModalityRows]


def read_plain(scanned: ScannedBody) -> PlainRequest | None:
    """Return None where the input is anything else, or has an error; `validated` reports it."""
    if not isinstance(scanned.document, simdjson.Object):
        return None
    try:
        return _plain(scanned.body, scanned.document)
    except _NOT_PLAIN:
        return None


def _plain(body: bytes, document: simdjson.Object) -> PlainRequest | None:
    if len(document) > _MOST_FIELDS:
        return None
    names, given = list(document.keys()), document["input"]
    if len(names) != len(set(names)) or not isinstance(given, simdjson.Array):
        return None
    if not 1 <= len(given) <= _MOST_ROWS:
        return None
    is_items = isinstance(given[0], simdjson.Object)
    # Items name their modalities themselves.
    if is_items and "modality" in names:
        return None
    features = _items(given) if is_items else _lists(given, body)
    if features is None:
        return None
    options = {name: document[name] for name in names if name != "input"}
    return PlainRequest(EmbeddingOptions.model_validate(options), features)


def _lists(given: simdjson.Array, body: bytes) -> NDArray[np.float64] | None:
    """Return None where an entry is neither number nor list, or lists differ in length."""
    rows = [row for row in given if isinstance(row, simdjson.Array)] or [given]
    # `as_buffer` flattens any depth: one bracket for each list, and no other anywhere.
    brackets = len(rows) + (rows[0] is not given)
    width = len(rows[0])
    # By numpy in a third of the time of `body.count`.
    found = np.count_nonzero(np.frombuffer(body, np.uint8) == ord("["))
    if not 1 <= width <= WIDEST_FEATURE or found != brackets:
        return None
    numbers = np.frombuffer(given.as_buffer(of_type="d"), np.float64)
    is_even = len(numbers) == len(rows) * width and all(len(row) == width for row in rows)
    return numbers.reshape(-1, width) if is_even else None


def _items(given: simdjson.Array) -> list[ModalityRows] | None:
    """Return None where an item is more or less than a modality and a feature in base64, or lengths differ."""
    positions: dict[str, list[int]] = {}
    features: dict[str, list[bytes]] = {}
    for index, item in enumerate(given):
        if not isinstance(item, simdjson.Object) or len(item) != len(_FIELDS_OF_PLAIN_ITEM):
            return None
        modality, feature = map(item.__getitem__, _FIELDS_OF_PLAIN_ITEM)
        if not isinstance(modality, str) or not isinstance(feature, str):
            return None
        positions.setdefault(modality, []).append(index)
        features.setdefault(modality, []).append(pybase64.b64decode(feature, validate=True))
    if any(len({len(each) for each in rows}) > 1 for rows in features.values()):
        return None
    # A bytearray: torch warns of arrays that it may not write to.
    return [
        ModalityRows(
            modality,
            np.frombuffer(bytearray().join(rows), "<f4").reshape(len(rows), -1),
            np.array(positions[modality]),
        )
        for modality, rows in features.items()
    ]


def parse(model: type[M], body: bytes, most: int, payload_bytes: int = _MOST_BYTES) -> M:
    """Parse a JSON body; `most`: entries in a list. Raises InvalidRequest."""
    check_bounds(model, body, most, payload_bytes)
    return validated(model, body)


def check_bounds(
    model: type[BaseModel],
    body: bytes,
    most: int,
    payload_bytes: int = _MOST_BYTES,
    scanned: ScannedBody | None = None,
) -> None:
    """Raises InvalidRequest where a body has an unknown field, more entries in a list than `most`, or a larger payload.

    `scanned`: the body, where it was scanned before. Other errors are left to the parser.
    """
    if len(body) <= 2 * min(most, WIDEST_FEATURE):
        return None  # An entry takes two bytes at least.
    scanned = scanned or scan(body)
    document = scanned.document
    if not isinstance(document, simdjson.Object):
        return _defer_to_parser(
            body, "the body is not a JSON object" if scanned.is_json else _UNREADABLE
        )
    _check_few("the body", len(document))
    names = list(document.keys())
    for name in names:
        if name not in model.model_fields:
            raise InvalidRequest(_no_field(name, model.model_fields), name)
    if len(names) != len(set(names)):  # Of two the parser takes the last, and simdjson the first.
        return _defer_to_parser(body, "the body has a field more than once; permitted is once")
    check = _Check(body, _inside(model).model_fields, most, payload_bytes)
    for name in names:
        check.field(name, document[name])
    # Both brackets at once, and those in texts.
    if np.count_nonzero((np.frombuffer(body, np.uint8) | 0x20) == ord("{")) > _MOST_NESTED:
        _check_nesting(check.nested)
    return None


def _defer_to_parser(body: bytes, problem: str, field: str | None = None) -> None:
    """The parser has a message for every error, and no bounds. Raises InvalidRequest for a large body."""
    if len(body) > _MOST_UNSCANNED_BYTES:
        raise InvalidRequest(problem, field, "invalid_json")


def _no_field(where: str, permitted: Iterable[str]) -> str:
    return f"there is no field {shortened(where)}; permitted are {', '.join(permitted)}"


def _check_few(where: str, fields: int) -> None:
    if fields > _MOST_FIELDS:
        raise InvalidRequest(f"{where} has {fields} fields; permitted are {_MOST_FIELDS}")


class _Check:
    """Collects what may nest further in `nested`, by field."""

    def __init__(
        self, body: bytes, item_fields: Collection[str], most: int, payload_bytes: int
    ) -> None:
        self._body = body
        self._item_fields = item_fields
        self._most = most
        self._payload_bytes = payload_bytes
        self.nested: dict[str, list[Nested]] = defaultdict(list)

    def field(self, field: str, value: object) -> None:
        if isinstance(value, simdjson.Array):
            self._list(field, value)
        elif isinstance(value, simdjson.Object):
            if field == "query":
                self._item(field, field, value)
            else:
                _check_filter(field, value)

    def _list(self, field: str, entries: simdjson.Array) -> None:
        if len(entries) and isinstance(entries[0], int | float):
            self._feature(field, field, entries)
            return
        if len(entries) > self._most:
            raise InvalidRequest(
                f"{field} has {len(entries)} rows; permitted are 1 to {self._most}", field
            )
        for index, entry in enumerate(entries):
            where = f"{field}[{index}]"
            if isinstance(entry, simdjson.Object):
                self._item(field, where, entry)
            elif isinstance(entry, simdjson.Array):
                self._feature(field, where, entry)

    def _item(self, field: str, where: str, item: simdjson.Object) -> None:
        _check_few(where, len(item))
        names = list(item.keys())
        if len(names) != len(set(names)):  # simdjson shows the first of two alone.
            problem = f"{where} has a field more than once; permitted is once"
            _defer_to_parser(self._body, problem, field)
        for name in names:
            if name not in self._item_fields:
                raise InvalidRequest(_no_field(f"{where}.{name}", self._item_fields), field)
            value = item[name]
            if name in _FEATURES and isinstance(value, simdjson.Array):
                self._feature(field, where, value)
            elif isinstance(value, Nested):
                _check_size(field, f"{where}.{name}", value, self._payload_bytes)
                self.nested[field].append(value)

    def _feature(self, field: str, where: str, numbers: simdjson.Array) -> None:
        if len(numbers) > WIDEST_FEATURE:
            raise InvalidRequest(
                f"{where} has {len(numbers)} numbers; permitted are up to {WIDEST_FEATURE}", field
            )
        self.nested[field].append(numbers)


def _check_size(field: str, where: str, value: Nested, most: int) -> None:
    """A payload that is a little too large is left to `collection_bodies.py`, which counts it as it is stored."""
    size = len(_as_bytes(value))
    if size > _LONGER_NUMBERS * most:
        raise InvalidRequest(f"{where} has {size} bytes; permitted are {most}", field)


def _check_filter(field: str, value: simdjson.Object) -> None:
    text = _as_bytes(value)
    if len(text) <= _MOST_IN_FILTER:
        return
    found = _count_outside_texts(text, b"[{,")
    if found > _MOST_IN_FILTER:
        raise InvalidRequest(
            f"{field} has {found} values; permitted are up to {_MOST_IN_FILTER}", field
        )


def _check_nesting(nested: Mapping[str, Sequence[Nested]]) -> None:
    most = _MOST_NESTED + sum(map(len, nested.values()))
    counts = {
        field: _count_outside_texts(b"".join(map(_as_bytes, values)), b"[{")
        for field, values in nested.items()
    }
    if sum(counts.values()) > most:
        field = max(counts, key=counts.__getitem__)
        raise InvalidRequest(
            f"{field} has {counts[field]} lists and objects inside its entries; permitted are {most}: "
            "send fewer entries in one request, or nest less in them",
            field,
        )


def _as_bytes(value: Nested) -> bytes:
    """Return the value as JSON without spaces."""
    return cast("bytes", value.mini)  # simdjson declares a text.


def _count_outside_texts(document: bytes, marks: bytes) -> int:
    """How many of these characters stand outside of quotes, by numpy, which lets other threads run."""
    without_escapes = document.replace(rb"\\", b"").replace(rb"\"", b"")
    characters = np.frombuffer(without_escapes, np.uint8)
    is_kept = characters == ord('"')
    for mark in marks:
        is_kept |= characters == mark
    is_quote = characters[is_kept] == ord('"')
    is_outside = ~np.logical_xor.accumulate(is_quote)
    return int(np.count_nonzero(is_outside & ~is_quote))


def validated(model: type[M], body: bytes) -> M:
    """Parse a JSON body that was checked before. Raises InvalidRequest."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _invalid_request(error, model) from None


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


def parse_parameters(model: type[M], parameters: Mapping[str, str]) -> M:
    """Parse query parameters. Raises InvalidRequest."""
    try:
        return model.model_validate_strings(parameters)
    except ValidationError as error:
        raise _invalid_request(error, model) from None


def _invalid_request(error: ValidationError, model: type[BaseModel]) -> InvalidRequest:
    detail = _most_specific(error.errors(include_url=False))
    field = str(detail["loc"][0]) if detail["loc"] else None
    code = "invalid_json" if detail["type"] == "json_invalid" else None
    return InvalidRequest(_message(detail, field, model), param=field, code=code)


def _most_specific(details: list[ErrorDetails]) -> ErrorDetails:
    """Choose one of the errors of a union, which are reported for each kind of value.

    That of items, where the first entry is one; otherwise the one that got furthest.
    """
    first_entries = [each["input"] for each in details if _indices(each["loc"]) == (0,)]
    of_items = [each for each in details if "Item" in "".join(map(str, each["loc"]))]
    if of_items and (not first_entries or isinstance(first_entries[0], dict)):
        return of_items[0]
    others = [each for each in details if each not in of_items] or details
    return max(others, key=lambda each: _indices(each["loc"]))


def _message(detail: ErrorDetails, field: str | None, model: type[BaseModel]) -> str:
    permitted = ", ".join(model.model_fields)
    if detail["type"] == "json_invalid":
        return f"the body is not JSON: {detail['ctx']['error']}"
    if field is None:
        return f"the body must be a JSON object with the fields {permitted}"
    where, is_inside = _path(detail["loc"]), len(detail["loc"]) > 1
    if detail["type"] == "missing":
        return f"the field {where!r} is missing" + (
            "" if is_inside else f"; permitted are {permitted}"
        )
    if detail["type"] == "extra_forbidden":
        return _no_field(where, _inside(model).model_fields if is_inside else model.model_fields)
    reason = detail["msg"].removeprefix("Input should be ")
    return f"{where} is {shortened(detail['input'])}; permitted is {reason}"


def _inside(model: type[BaseModel]) -> type[BaseModel]:
    """The model of the entries of a body's lists."""
    inside: type[BaseModel] = getattr(model, "INSIDE", Item)
    return inside


def _path(location: Sequence[int | str]) -> str:
    """Return a path into the body: `input[2].feature[7]`.

    The location also has the names of kinds that were tried; only fields have plain names.
    """
    path = str(location[0])
    for before, part in pairwise(location):
        if isinstance(part, int):
            path += f"[{part}]"
        elif isinstance(before, int) and part.isidentifier():
            path += f".{part}"
    return path


def _indices(location: tuple[int | str, ...]) -> tuple[int, ...]:
    return tuple(part for part in location if isinstance(part, int))
