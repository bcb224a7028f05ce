"""Bodies of requests about collections, and payloads of items."""

import binascii
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, get_args

import orjson
import pybase64
from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from cmcl.contract.api.endpoint import FloatType, VectorType
from workers.serve.api.wire.requests import STRICT, Item, parse
from workers.serve.api.wire.vectors import check_count
from workers.serve.collections.filters import LONGEST_FIELD, as_number
from workers.serve.encoders.port import MOST_THUMBNAIL_BYTES
from workers.serve.errors import InvalidRequest, shortened

LONGEST_ID = 256
# `#t=` and two times come behind it.
LONGEST_ID_OF_PARTS = 224
LONGEST_WORDS = 1024
# What programs in other languages can read.
_SMALLEST_INTEGER = -(2**63)
_LARGEST_INTEGER = 2**64 - 1

Included = Literal["source", "thumbnail"]
INCLUDED: tuple[Included, ...] = get_args(Included)
# First bytes of JPEG, PNG, GIF and WebP.
_SMALL = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"RIFF",
    *(b"\xff" + bytes([each]) for each in (0xF2, 0xF3, 0xFA, 0xFB)),
)


class CollectionRequest(BaseModel):
    """The properties of a new collection."""

    model_config = STRICT

    model: str = Field(
        description="whose live version embeds the items, now and after each swap",
        examples=["photos"],
    )
    feature_type: FloatType = Field(
        default="float32", description="how features are stored; float16 takes half of the space"
    )
    vector_type: VectorType = Field(
        default="float32",
        description="how vectors are stored; bit takes a 32nd of the space, and results are scored from features",
    )
    dimensions: int | None = Field(
        default=None,
        ge=1,
        description="how many numbers of each vector are kept, the first ones; by default all. Fewer only with "
        "heads of the policy improve, which order them by how much they tell",
    )
    text_fields: list[str] = Field(
        default=[],
        max_length=16,
        description="fields of payloads whose words a search can name",
        examples=[["title", "caption"]],
    )


class CollectionItem(Item):
    """An item with an id and a payload."""

    # Other stores do not take control characters in ids.
    id: str = Field(min_length=1, max_length=LONGEST_ID, pattern=r"^[^\x00-\x1f\x7f]*$")
    payload: dict[str, Any] | None = Field(
        default=None, description="a small JSON object; filters see its fields"
    )
    parent: str | None = Field(
        default=None,
        min_length=1,
        max_length=LONGEST_ID,
        description="what it is a part of, such as a recording; see `by_parent` of a search",
    )
    start: float | None = Field(
        default=None, ge=0, description="where in its parent it begins, in seconds or pages"
    )
    end: float | None = Field(default=None, ge=0, description="where it ends")
    parts: bool = Field(
        default=False,
        description="whether the windows of a recording become items, in place of their mean: `data` for an encoder of "
        "audio or video with window_seconds. `start`: of a piece of a long recording, which is sent in several",
    )
    source: str | None = Field(
        default=None, min_length=1, max_length=2048, description="address of the original"
    )
    thumbnail: str | bool | None = Field(
        default=None,
        description="base64 of a JPEG, PNG, WebP, GIF or MP3 of at most 16384 bytes; true: one of at most 96 pixels a "
        "side, or three seconds of a sound, is made of `data`",
    )

    @model_validator(mode="after")
    def _makes_a_thumbnail_of_a_file(self) -> Self:
        if self.thumbnail is True and self.data is None:
            raise PydanticCustomError("thumbnail", "a thumbnail is made of data, and there is none")
        return self

    @model_validator(mode="after")
    def _ends_after_its_start(self) -> Self:
        start, end = self.start, self.end
        if self.parts and end is None:
            return self
        if (start is None) != (end is None) or (
            start is not None and end is not None and end < start
        ):
            raise PydanticCustomError(
                "span",
                "start and end are {start} and {end}; permitted are both, in this order, or neither",
                {"start": start, "end": end},
            )
        return self

    @model_validator(mode="after")
    def _is_a_whole_recording(self) -> Self:
        if self.parts and (
            self.data is None
            or not (self.parent is None and self.end is None)
            or len(self.id) > LONGEST_ID_OF_PARTS
        ):
            raise PydanticCustomError(
                "parts",
                "parts are of an item with data, without parent and end, and with an id of up to {longest} characters",
                {"longest": LONGEST_ID_OF_PARTS},
            )
        return self


class ItemsRequest(BaseModel):
    """Items to add; existing ones with the same id are replaced."""

    model_config = STRICT
    INSIDE: ClassVar[type[BaseModel]] = CollectionItem

    items: list[CollectionItem]


class RemovalRequest(BaseModel):
    """Ids of items to remove; a missing one is not an error."""

    model_config = STRICT

    ids: list[str]


class SearchRequest(BaseModel):
    """What to search for: an item, words, or both; and where."""

    model_config = STRICT

    query: Item | None = None
    words: str | None = Field(
        default=None,
        min_length=1,
        max_length=LONGEST_WORDS,
        description="to be found in the text_fields of payloads, ranked by BM25; with `query` the two rankings "
        "are fused",
    )
    top_k: int = Field(default=10, ge=1)
    modalities: list[str] | None = Field(
        default=None, min_length=1, description="of what is found; by default all"
    )
    filter: dict[str, Any] | None = Field(
        default=None, description="over payloads; docs/search.md has the language"
    )
    exact: bool = Field(default=False, description="compare with every row, however many")
    by_parent: bool = Field(
        default=False, description="of parts with the same parent find the best one only"
    )
    include: list[Included] = Field(
        default=[], max_length=len(INCLUDED), description="what else is returned of each item"
    )


def part_id(item: str, start: float | None, end: float | None = None) -> str:
    """Return the id of a part, which names its seconds as URLs of media do."""
    return f"{item}#t={start or 0:.10g}" + ("" if end is None else f",{end:.10g}")


def parse_items(body: bytes, most: int, payload_bytes: int) -> ItemsRequest:
    """Parse a request of 1 to so many items. Raises InvalidRequest."""
    request = parse(ItemsRequest, body, most, payload_bytes)
    check_count(len(request.items), most, "items")
    check_different(
        [part_id(each.id, each.start) if each.parts else each.id for each in request.items]
    )
    return request


def parse_removal(body: bytes, most: int) -> RemovalRequest:
    """Parse a request of 1 to so many ids. Raises InvalidRequest."""
    request = parse(RemovalRequest, body, most)
    check_count(len(request.ids), most, "ids")
    for index, each in enumerate(request.ids):
        if not 1 <= len(each) <= LONGEST_ID:
            raise InvalidRequest(
                f"ids[{index}] has {len(each)} characters; permitted are 1 to {LONGEST_ID}", "ids"
            )
    return request


def check_different(ids: list[str]) -> None:
    """Raises InvalidRequest: which of two rows counts must not depend on their order."""
    seen: set[str] = set()
    for index, each in enumerate(ids):
        if each in seen:
            raise InvalidRequest(
                f"items[{index}].id is {shortened(each)} again; permitted is each id once",
                "items",
                "duplicate_id",
            )
        seen.add(each)


def payload_text(payload: Mapping[str, Any] | None, index: int, most: int) -> str | None:
    """Return the payload as it is stored. Raises InvalidRequest."""
    if payload is None:
        return None
    text = _plain_text(payload)
    if text is None:
        text = _checked_text(payload, index)
    size = len(text.encode())
    if size > most:
        raise InvalidRequest(
            f"items[{index}].payload has {size} bytes; permitted are {most}", "items"
        )
    return text


def thumbnail_of(item: CollectionItem, index: int) -> bytes | None:
    """Return the thumbnail that was sent. Raises InvalidRequest."""
    if not isinstance(item.thumbnail, str):
        return None
    try:
        data = pybase64.b64decode(item.thumbnail, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data.startswith(_SMALL) or len(data) > MOST_THUMBNAIL_BYTES:
        raise InvalidRequest(
            f"items[{index}].thumbnail is {shortened(item.thumbnail)}; permitted is base64 of a JPEG, PNG, WebP, GIF or MP3 of "
            f"up to {MOST_THUMBNAIL_BYTES} bytes",
            "items",
        )
    return data


def _plain_text(payload: Mapping[str, Any]) -> str | None:
    """The same in a fiftieth of the time; None where the payload needs the checks.

    orjson refuses integers beyond 64 bits and lone surrogates, and writes null for a number that is not finite.
    """
    if not all(1 <= len(field) <= LONGEST_FIELD for field in payload):
        return None
    try:
        text = orjson.dumps(payload)
    except orjson.JSONEncodeError:
        return None
    return None if b"null" in text else text.decode()


def _checked_text(payload: Mapping[str, Any], index: int) -> str:
    for field, value in payload.items():
        _check_field(field, value, index)
        _check_integers(field, value, index)
    try:
        return json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise InvalidRequest(f"items[{index}].payload is not JSON: {error}", "items") from error


def _check_field(field: str, value: object, index: int) -> None:
    if not 1 <= len(field) <= LONGEST_FIELD:
        raise InvalidRequest(
            f"items[{index}].payload has a field whose name has {len(field)} characters; permitted "
            f"are 1 to {LONGEST_FIELD}",
            "items",
        )
    for each in value if isinstance(value, list) else [value]:
        is_number = isinstance(each, int | float) and not isinstance(each, bool)
        if is_number and as_number(each) is None:
            raise InvalidRequest(
                f"items[{index}].payload has a number in {shortened(field)} that is not a float64",
                "items",
            )


def _check_integers(field: str, value: object, index: int) -> None:
    """At any depth."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)
        elif isinstance(each, int) and not _SMALLEST_INTEGER <= each <= _LARGEST_INTEGER:
            raise InvalidRequest(
                f"items[{index}].payload has {shortened(each)} in {shortened(field)}; permitted are "
                f"integers from {_SMALLEST_INTEGER} to {_LARGEST_INTEGER}",
                "items",
            )
