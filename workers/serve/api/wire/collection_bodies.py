"""Bodies of requests about collections, and payloads of items."""

import binascii
from typing import Annotated, Literal, get_args

import msgspec
import orjson
import pybase64
from msgspec import Meta

from cmcl.contract.api.endpoint import FloatType, VectorType
from workers.serve.api.wire.requests import (
    AtLeastOne,
    Body,
    Item,
    parse,
    parse_object,
)
from workers.serve.api.wire.vectors import check_count
from workers.serve.collections.filters import LONGEST_FIELD
from workers.serve.encoders.port import MOST_THUMBNAIL_BYTES
from workers.serve.errors import InvalidRequest, shortened

LONGEST_ID = 256
# `#t=` and two times come behind it.
LONGEST_ID_OF_PARTS = 224
LONGEST_WORDS = 1024
# Read in 80 ms at most. The largest filter has 64,000 values.
MOST_FILTER_BYTES = 4 << 20
# A payload may be sent with spaces, and escapes: they are not stored.
_MOST_TIMES_AS_SENT = 4

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
_Name = Annotated[str, Meta(min_length=1, max_length=LONGEST_ID)]
_Seconds = Annotated[float, Meta(ge=0)]
# Decoded later, where it is small enough: a struct would make every value of it.
_OBJECT = {"type": ["object", "null"]}


class CollectionRequest(Body, kw_only=True):
    """The properties of a new collection."""

    model: Annotated[
        str,
        Meta(
            description="whose live version embeds the items, now and after each swap",
            examples=["photos"],
        ),
    ]
    feature_type: Annotated[
        FloatType,
        Meta(description="how features are stored; float16 takes half of the space"),
    ] = "float32"
    vector_type: Annotated[
        VectorType,
        Meta(
            description="how vectors are stored; bit takes a 32nd of the space, and results are scored from features"
        ),
    ] = "float32"
    dimensions: Annotated[
        AtLeastOne | None,
        Meta(
            description="how many numbers of each vector are kept, the first ones; by default all. Fewer only with "
            "heads of the policy improve, which order them by how much they tell"
        ),
    ] = None
    text_fields: Annotated[
        list[str],
        Meta(
            max_length=16,
            description="fields of payloads whose words a search can name",
            examples=[["title", "caption"]],
        ),
    ] = msgspec.field(default_factory=list)


class CollectionItem(Item, kw_only=True):
    """An item with an id and a payload."""

    # Other stores do not take control characters in ids. Python's `$` also stands before a last newline.
    id: Annotated[
        str, Meta(min_length=1, max_length=LONGEST_ID, pattern=r"^[^\x00-\x1f\x7f]*$(?!\n)")
    ]
    payload: Annotated[
        msgspec.Raw,
        Meta(description="a small JSON object; filters see its fields", extra_json_schema=_OBJECT),
    ] = msgspec.field(default_factory=msgspec.Raw)
    parent: Annotated[
        _Name | None,
        Meta(description="what it is a part of, such as a recording; see `by_parent` of a search"),
    ] = None
    start: Annotated[
        _Seconds | None,
        Meta(description="where in its parent it begins, in seconds or pages"),
    ] = None
    end: Annotated[_Seconds | None, Meta(description="where it ends")] = None
    parts: Annotated[
        bool,
        Meta(
            description="whether the windows of a recording become items, in place of their mean: `data` for an "
            "encoder of audio or video with window_seconds. `start`: of a piece of a long recording, which is sent "
            "in several"
        ),
    ] = False
    source: Annotated[
        Annotated[str, Meta(min_length=1, max_length=2048)] | None,
        Meta(description="address of the original"),
    ] = None
    thumbnail: Annotated[
        str | bool | None,
        Meta(
            description="base64 of a JPEG, PNG, WebP, GIF or MP3 of at most 16384 bytes; true: one of at most 96 "
            "pixels a side, or three seconds of a sound, is made of `data`"
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        start, end = self.start, self.end
        if self.thumbnail is True and self.data is None:
            raise ValueError("has a thumbnail that is made of data, and no data")
        if self.parts and (
            self.data is None
            or not (self.parent is None and end is None)
            or len(self.id) > LONGEST_ID_OF_PARTS
        ):
            raise ValueError(
                "has parts, for which it needs data, no parent, no end, and an id of up to "
                f"{LONGEST_ID_OF_PARTS} characters"
            )
        if not self.parts and (
            (start is None) != (end is None)
            or (start is not None and end is not None and end < start)
        ):
            raise ValueError(
                f"has start {start} and end {end}; permitted are both, in this order, or neither"
            )


class ItemsRequest(Body, kw_only=True):
    """Items to add; existing ones with the same id are replaced."""

    INSIDE = CollectionItem

    items: list[CollectionItem]


class RemovalRequest(Body, kw_only=True):
    """Ids of items to remove; a missing one is not an error."""

    ids: list[_Name]


class SearchRequest(Body, kw_only=True):
    """What to search for: an item, words, or both; and where."""

    INSIDE = Item

    query: Item | None = None
    words: Annotated[
        Annotated[str, Meta(min_length=1, max_length=LONGEST_WORDS)] | None,
        Meta(
            description="to be found in the text_fields of payloads, ranked by BM25; with `query` the two rankings "
            "are fused"
        ),
    ] = None
    top_k: AtLeastOne = 10
    modalities: Annotated[
        Annotated[list[str], Meta(min_length=1, max_length=64)] | None,
        Meta(description="of what is found; by default all"),
    ] = None
    filter: Annotated[
        msgspec.Raw,
        Meta(
            description="over payloads; docs/search.md has the language", extra_json_schema=_OBJECT
        ),
    ] = msgspec.field(default_factory=msgspec.Raw)
    exact: Annotated[bool, Meta(description="compare with every row, however many")] = False
    by_parent: Annotated[
        bool, Meta(description="of parts with the same parent find the best one only")
    ] = False
    include: Annotated[
        list[Included],
        Meta(max_length=len(INCLUDED), description="what else is returned of each item"),
    ] = msgspec.field(default_factory=list)


def part_id(item: str, start: float | None, end: float | None = None) -> str:
    """Return the id of a part, which names its seconds as URLs of media do."""
    return f"{item}#t={start or 0:.10g}" + ("" if end is None else f",{end:.10g}")


def parse_items(body: bytes, most: int) -> ItemsRequest:
    """Parse a request of 1 to `most` items. Raises InvalidRequest."""
    request = parse(ItemsRequest, body)
    check_count(len(request.items), most, "items")
    check_different(
        [part_id(each.id, each.start) if each.parts else each.id for each in request.items]
    )
    return request


def parse_removal(body: bytes, most: int) -> RemovalRequest:
    """Parse a request of 1 to `most` ids. Raises InvalidRequest."""
    request = parse(RemovalRequest, body)
    check_count(len(request.ids), most, "ids")
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


def payload_text(item: CollectionItem, index: int, most: int) -> str | None:
    """Return the payload as it is stored, in at most `most` bytes. Raises InvalidRequest."""
    where = f"items[{index}].payload"
    payload = parse_object(item.payload, where, most, _MOST_TIMES_AS_SENT)
    if payload is None:
        return None
    for field in payload:
        if not 1 <= len(field) <= LONGEST_FIELD:
            raise InvalidRequest(
                f"{where} has a field whose name has {len(field)} characters; permitted are 1 to {LONGEST_FIELD}",
                "items",
            )
    try:
        text = orjson.dumps(payload)
    except orjson.JSONEncodeError as error:
        raise InvalidRequest(
            f"{where} cannot be stored: {error}; permitted are whole numbers of up to 64 bits, and 200 objects "
            "and lists inside one another",
            "items",
        ) from error
    if len(text) > most:
        raise InvalidRequest(f"{where} has {len(text)} bytes; permitted are {most}", "items")
    return text.decode()


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
