"""Arguments and result types of the embeddings endpoint."""

import base64
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from pydantic import Field

from cmcl.client.errors import CmclError, InvalidArgument, Json, json_object
from cmcl.client.types import ApiModel
from cmcl.client.wire import Side, unexpected_response

T = TypeVar("T")
Vectors = Sequence[Sequence[float]]

_LONGEST_SHOWN = 100
_PERMITTED = (
    "write Query(modality, feature), Query(modality, text=...) or Query(modality, data=...), and "
    "Item(id, modality, ...) for an item"
)


@dataclass(frozen=True)
class Query:
    """An item of one modality, as a feature or as raw input for an encoder of the endpoint.

    Set exactly one of `feature`, `text` and `data` (the bytes of a file).
    """

    modality: str
    feature: Sequence[float] | None = None
    text: str | None = None
    data: bytes | None = None


@dataclass(frozen=True)
class Item:
    """An item of a collection: an id, a modality, content as in `Query`, and a payload."""

    id: str
    modality: str
    feature: Sequence[float] | None = None
    text: str | None = None
    data: bytes | None = None
    payload: Mapping[str, Any] | None = None


class SearchStatus(ApiModel):
    """Search state of the responding replica. `problem`: why it is behind."""

    version: int | None = None
    revision: int | None = None
    rows: dict[str, int] = Field(default={}, description="number of rows by modality")
    memory_bytes: int = 0
    problem: str | None = None


class Collection(ApiModel):
    """A collection of items, searched with the live version of a model."""

    id: str
    model: str
    feature_type: str
    revision: int = Field(description="increases with each change")
    stored_bytes: int
    damaged: str | None = Field(default=None, description="error in the stored data, if any")
    searched: SearchStatus | None = None


class WriteResult(ApiModel):
    """Result of a durable write. `rows`: number of items added, replaced or removed."""

    id: str
    rows: int
    revision: int


class SearchHit(ApiModel):
    """A search hit. `score` is a cosine; larger is better."""

    id: str
    score: float
    modality: str
    payload: dict[str, Any] | None = None


class SearchResults(ApiModel):
    """Search hits, best first. `model`: name@version that embedded the query and the items."""

    data: list[SearchHit]
    model: str
    revision: int
    exact: bool

    @property
    def version(self) -> int:
        """The version that was searched with."""
        return int(self.model.rpartition("@")[2])


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


class ScoredCandidate(ApiModel):
    """Index of a candidate in the request, and its cosine with the query."""

    index: int
    score: float


class Similarity(ApiModel):
    """Scores by one version (`model`, as name@version): all, or the best of each query."""

    model: str
    scores: list[list[float]] | None = Field(
        default=None, description="scores, queries × candidates"
    )
    results: list[list[ScoredCandidate]] | None = Field(
        default=None, description="best candidates of each query, best first"
    )


class ServedVersions(ApiModel):
    """Versions of a model in the responding replica."""

    resident: list[int] = Field(description="versions in memory")
    lineage: list[int] = Field(description="ancestors of the live version, and itself")
    retired: list[int]


class ServedCandidate(ApiModel):
    """A version on trial beside the live one."""

    version: int
    share: float
    shadow: float
    loaded: bool


class Channels(ApiModel):
    """The live version and the version on trial."""

    live: int
    candidate: ServedCandidate | None = None


class RejectedVersion(ApiModel):
    """A version that the replica rejected, and why."""

    version: int
    kind: str
    reason: str


class ServedModel(ApiModel):
    """A model that the endpoint serves."""

    id: str
    version: int
    width: int
    modalities: dict[str, int]
    encoders: dict[str, dict[str, str]] = Field(description="encoder by modality")
    versions: ServedVersions
    channels: Channels
    compatibility: dict[str, dict[str, float | None] | None] = Field(
        description="relative change of the scores of stored vectors under queries of the live "
        "version, by version in memory and pair; None until it is known"
    )
    refusals: list[RejectedVersion] = Field(default=[])


def encode_content(item: Item | Query) -> dict[str, Any]:
    """Encode an item for a request. Features are sent as base64, a quarter of the size of JSON numbers.

    Raises InvalidArgument.
    """
    if not isinstance(item, Item | Query):
        raise InvalidArgument(f"{_shown(item)} is not a query or an item; {_PERMITTED}")
    if sum(each is not None for each in (item.feature, item.text, item.data)) != 1:
        raise InvalidArgument(
            f"{_shown(item)} must have exactly one of feature, text and data; {_PERMITTED}"
        )
    content: dict[str, Any] = {"modality": item.modality}
    if item.feature is not None:
        content["feature"] = base64.b64encode(_packed(item.feature)).decode()
    if item.text is not None:
        content["text"] = item.text
    if item.data is not None:
        content["data"] = base64.b64encode(item.data).decode()
    return content


def encode_inputs(inputs: Vectors | Sequence[str] | str) -> dict[str, object]:
    """Encode features or texts for a request. Raises InvalidArgument."""
    texts = [inputs] if isinstance(inputs, str) else inputs
    try:
        rows = [row if isinstance(row, str) else list(row) for row in texts]
    except TypeError as error:
        raise InvalidArgument(
            f"input is {_shown(inputs)}; it must be a list of features (each a list of numbers; "
            "write [feature] for one), a text, or a list of texts"
        ) from error
    return {"input": rows, "encoding_format": "base64"}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


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
