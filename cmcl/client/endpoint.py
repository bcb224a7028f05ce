"""Arguments and result types of the embeddings endpoint."""

import base64
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from cmcl.client.errors import CmclError, InvalidArgument, Json, json_object
from cmcl.client.wire import Side, json_bytes, unexpected_response
from cmcl.contract.errors import shortened

T = TypeVar("T")
Vectors = Sequence[Sequence[float]]

# The endpoint takes bodies of 64 MiB by default, and 64 KiB/s at least.
_BODY_BYTES = 32 << 20
ENCODER_TIMEOUT = "encoder_timeout"
# The first size is that of an encoder's pass by default. The largest is a quarter of the rows that a request may have.
_FIRST_RAW_ITEMS, _MOST_RAW_ITEMS = 32, 1024
# Far below the 10 s after which an encoder's result is no longer waited for.
_FAST_SECONDS = 2.0

_PERMITTED = (
    "write Query(modality, feature), Query(modality, text=...), Query(modality, data=...) or "
    "Query(modality, numbers=...), and Item(id, modality, ...) for an item"
)


@dataclass(frozen=True)
class Query:
    """An item of one modality, as a feature or as raw input for the encoder that the modality is bound to.

    Set exactly one of `feature`, `text`, `data` (the bytes of a file) and `numbers` (raw numbers, such
    as latitude and longitude).
    """

    modality: str
    feature: Sequence[float] | None = None
    text: str | None = None
    data: bytes | None = None
    numbers: Sequence[float] | None = None


Inputs = Vectors | Sequence[str] | Sequence[Query] | str


@dataclass(frozen=True)
class Item:
    """An item of a collection: an id, a modality, content as in `Query`, and a payload.

    `parent`: the id of what it is a part of, such as a recording; `start` and `end`: where in it, in seconds or pages.
    `parts`: make an item of each window of a recording; `start`: of a piece of it, where it is sent in several.
    `source`: address of the original. `thumbnail`: a small picture, or True to make one of `data`.
    """

    id: str
    modality: str
    feature: Sequence[float] | None = None
    text: str | None = None
    data: bytes | None = None
    numbers: Sequence[float] | None = None
    payload: Mapping[str, Any] | None = None
    parent: str | None = None
    start: float | None = None
    end: float | None = None
    parts: bool = False
    source: str | None = None
    thumbnail: bytes | bool | None = None


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors, and the version that computed all of them."""

    vectors: list[list[float]]
    version: int


@dataclass(frozen=True)
class MigratedEmbeddings(Embeddings):
    """Vectors mapped from `from_version` to `version`, with the error of the mapping.

    predicted_error: expected relative error for items like those trained on. error_on_rows: relative
    error for these vectors. exact: whether the mapping is lossless for all vectors. condition: factor
    by which rounding errors of the stored vectors may grow. rank: number of directions used.
    """

    from_version: int
    predicted_error: float
    error_on_rows: float | None
    rank: int
    condition: float
    exact: bool


def encode_content(item: Item | Query) -> dict[str, Any]:
    """Encode an item for a request. Features are sent as base64, a quarter of the size of JSON numbers.

    Raises InvalidArgument.
    """
    if not isinstance(item, Item | Query):
        raise InvalidArgument(f"{shortened(repr(item))} is not a query or an item; {_PERMITTED}")
    contents = (item.feature, item.text, item.data, item.numbers)
    if sum(each is not None for each in contents) != 1:
        raise InvalidArgument(
            f"{shortened(repr(item))} must have exactly one of feature, text, data and numbers; {_PERMITTED}"
        )
    content: dict[str, Any] = {"modality": item.modality}
    if item.feature is not None:
        content["feature"] = base64.b64encode(_packed(item.feature)).decode()
    if item.text is not None:
        content["text"] = item.text
    if item.data is not None:
        content["data"] = base64.b64encode(item.data).decode()
    if item.numbers is not None:
        content["numbers"] = list(item.numbers)
    return content


def encode_inputs(modality: str, inputs: Inputs) -> dict[str, Any]:
    """Encode features, texts or queries for a request. Raises InvalidArgument."""
    try:
        given: list[Any] = [inputs] if isinstance(inputs, str) else list(inputs)
        if any(isinstance(each, Query) for each in given):
            items = [encode_content(each) for each in given]
            if other := next((item for item in items if item["modality"] != modality), None):
                raise InvalidArgument(
                    f"an item has modality {other['modality']!r}, and the call is for {modality!r}; embed "
                    "each modality in a separate call"
                )
            return {"input": items, "encoding_format": "base64"}  # Each item names its modality.
        # Rows of an array become Python's numbers, which JSON can have.
        rows = [
            row if isinstance(row, str) else list(getattr(row, "tolist", lambda row=row: row)())
            for row in given
        ]
    except TypeError as error:
        raise InvalidArgument(
            f"input is {shortened(repr(inputs))}; it must be a list of features (each a list of numbers; "
            "write [feature] for one), a text, a list of texts, or a list of Query"
        ) from error
    return {"modality": modality, "input": rows, "encoding_format": "base64"}


def _packed(feature: Sequence[float]) -> bytes:
    try:
        return struct.pack(f"<{len(feature)}f", *feature)
    except (struct.error, OverflowError, TypeError) as error:
        raise InvalidArgument(
            f"a feature must be a list of numbers in the range of float32: {error}"
        ) from error


def parse_response(response: httpx.Response, read_from: Callable[[Json], T]) -> T:
    """Parse a response with `read_from`. Raises CmclError for an unexpected form."""
    answer = json_object(response)
    if answer is None:
        raise unexpected_response(Side.EMBEDDINGS, response)
    try:
        return read_from(answer)
    except (KeyError, TypeError, AttributeError, ValueError, struct.error) as error:
        message = f"the response of the endpoint has an unexpected form: {error!r}"
        raise CmclError(message, response.status_code) from error


class RawBatchSize:
    """How many raw items a request has: half as many after the encoder ran out of time, twice as many while it is fast."""

    def __init__(self) -> None:
        self.items = _FIRST_RAW_ITEMS

    def shrink(self, error: CmclError, sent: int) -> bool:
        """Note a failed request. Return whether to send its items in smaller ones."""
        if error.code != ENCODER_TIMEOUT or sent == 1:
            return False
        self.items = sent // 2
        assert self.items > 0
        return True

    def grow(self, sent: int, seconds: float) -> None:
        """Note a request that was answered after `seconds`."""
        if sent == self.items and seconds < _FAST_SECONDS:
            self.items = min(2 * sent, _MOST_RAW_ITEMS)


def batches_of(
    entries: Iterable[object], most: int, raw_size: RawBatchSize | None = None
) -> Iterator[list[bytes]]:
    """Encode entries in batches of at most `most`, or of `raw_size` where they are raw, below the limit of a body."""
    batch, size = list[bytes](), 0
    for entry in entries:
        encoded = json_bytes(entry) or b""
        count = min(most, raw_size.items) if raw_size and _is_raw(entry) else most
        if batch and (len(batch) >= count or size + len(encoded) > _BODY_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(encoded)
        size += len(encoded)
    if batch:
        yield batch


def _is_raw(entry: object) -> bool:
    """Whether an encoded input needs an encoder."""
    if isinstance(entry, Mapping):
        return not entry.keys().isdisjoint(("text", "data", "numbers"))
    return isinstance(entry, str)


def body_of(field: str, encoded: Iterable[bytes], **others: object) -> bytes:
    """Return a body with a list of encoded entries in `field`."""
    head = b"".join(
        b'"%s":%s,' % (name.encode(), json_bytes(value)) for name, value in others.items()
    )
    return b'{%s"%s":[%s]}' % (head, field.encode(), b",".join(encoded))


def embedded(answer: Json) -> Embeddings:
    """Parse the response to a request for embeddings."""
    return Embeddings(vectors_of(answer), version_of(answer))


def migrated(answer: Json) -> MigratedEmbeddings:
    """Parse the response of a migration."""
    migration = answer["migration"]
    names = (
        "from_version",
        "predicted_error",
        "error_on_rows",
        "rank",
        "condition",
        "exact",
    )
    return MigratedEmbeddings(
        vectors_of(answer), version_of(answer), **{name: migration[name] for name in names}
    )


def vectors_of(answer: Json) -> list[list[float]]:
    """Decode the vectors of a response."""
    return [_floats(item["embedding"]) for item in answer["data"]]


def version_of(answer: Json) -> int:
    """Return the version that answered."""
    return int(answer["model"].rpartition("@")[2])


def _floats(encoded: str) -> list[float]:
    data = base64.b64decode(encoded, validate=True)
    return list(struct.unpack(f"<{len(data) // 4}f", data))
