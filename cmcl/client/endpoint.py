"""What the embeddings endpoint is asked and answers: embeddings, models, collections."""

import base64
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from pydantic import Field

from cmcl.client.answers import Answer
from cmcl.client.errors import CmclError, InvalidArgument, Json, json_object
from cmcl.client.wire import Side, not_of_cmcl

T = TypeVar("T")
Vectors = Sequence[Sequence[float]]

_LONGEST_SHOWN = 100
_PERMITTED = (
    "write Query(modality, feature), Query(modality, text=...) or Query(modality, data=...), and "
    "Item(id, modality, ...) for an item"
)


@dataclass(frozen=True)
class Query:
    """One thing of one modality: its feature, or what an encoder of the endpoint turns into one.

    Exactly one of `feature`, `text` and `data` (the bytes of a file).
    """

    modality: str
    feature: Sequence[float] | None = None
    text: str | None = None
    data: bytes | None = None


@dataclass(frozen=True)
class Item:
    """The same with a name, and with what is to be known about it."""

    id: str
    modality: str
    feature: Sequence[float] | None = None
    text: str | None = None
    data: bytes | None = None
    payload: Mapping[str, Any] | None = None


class Searched(Answer):
    """What the replica that was asked has in memory. `problem`: why it does not follow."""

    version: int | None = None
    revision: int | None = None
    rows: dict[str, int] = Field(default={}, description="by modality")
    memory_bytes: int = 0
    problem: str | None = None


class Collection(Answer):
    """Items that are searched with the live version of a model."""

    id: str
    model: str
    feature_type: str
    revision: int = Field(description="grows with each change")
    stored_bytes: int
    damaged: str | None = Field(default=None, description="what is wrong with what is stored")
    searched: Searched | None = None


class Written(Answer):
    """A change that is stored durably. `rows`: items that were added, replaced or removed."""

    id: str
    rows: int
    revision: int


class Hit(Answer):
    """An item that was found; the larger score (a cosine) is the better one."""

    id: str
    score: float
    modality: str
    payload: dict[str, Any] | None = None


class Found(Answer):
    """Best first. `model`: name@version of the one version that made query and vectors alike."""

    data: list[Hit]
    model: str
    revision: int
    exact: bool

    @property
    def version(self) -> int:
        """The version that answered."""
        return int(self.model.rpartition("@")[2])


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors, and the one version that gave all of them."""

    vectors: list[list[float]]
    version: int


@dataclass(frozen=True)
class Migrated(Embeddings):
    """Vectors of `from_version` turned into those of `version`, and how right that is.

    `predicted_error`: to expect of items like those learned; `error_on_rows`: over these very ones;
    both relative. `exact`: nothing is lost, whatever the items. `condition`: by how much rounding of
    the stored vectors may grow; `rank`: their directions that are used.
    """

    from_version: int
    predicted_error: float
    error_on_rows: float | None
    rank: int
    condition: float
    exact: bool


class Match(Answer):
    """A candidate by its place in the request, and its cosine with the query."""

    index: int
    score: float


class Similarity(Answer):
    """Scores by one version, `model` as name@version: all of them, or each query's best."""

    model: str
    scores: list[list[float]] | None = Field(default=None, description="queries × candidates")
    results: list[list[Match]] | None = Field(default=None, description="the best first")


class ServedVersions(Answer):
    """Versions of a model, as one replica has them."""

    resident: list[int] = Field(description="in its memory")
    lineage: list[int] = Field(description="those that the live version grew from, and itself")
    retired: list[int]


class ServedCandidate(Answer):
    """A version on trial beside the live one."""

    version: int
    share: float
    shadow: float
    loaded: bool


class Channels(Answer):
    """Which version answers, and which one beside it."""

    live: int
    candidate: ServedCandidate | None = None


class Refused(Answer):
    """A version that the replica could not load, and why."""

    version: int
    kind: str
    reason: str


class ServedModel(Answer):
    """A model as the endpoint answers for it."""

    id: str
    version: int
    width: int
    modalities: dict[str, int]
    encoders: dict[str, dict[str, str]] = Field(description="by modality that takes raw items")
    versions: ServedVersions
    channels: Channels
    compatibility: dict[str, dict[str, float | None] | None] = Field(
        description="by version in memory and pair: relative change of the scores of vectors that "
        "it stored, under queries of the live version; None until it is known"
    )
    refusals: list[Refused] = Field(default=[])


def content_of(item: Item | Query) -> dict[str, Any]:
    """Modality and content as the endpoint reads them: base64 costs a quarter of a list of numbers.

    Raises InvalidArgument.
    """
    if not isinstance(item, Item | Query):
        raise InvalidArgument(f"a query or item is {_shown(item)}; {_PERMITTED}")
    if sum(each is not None for each in (item.feature, item.text, item.data)) != 1:
        raise InvalidArgument(f"{_shown(item)} has no content, or more than one; {_PERMITTED}")
    content: dict[str, Any] = {"modality": item.modality}
    if item.feature is not None:
        content["feature"] = base64.b64encode(_packed(item.feature)).decode()
    if item.text is not None:
        content["text"] = item.text
    if item.data is not None:
        content["data"] = base64.b64encode(item.data).decode()
    return content


def written_inputs(inputs: Vectors | Sequence[str] | str) -> dict[str, object]:
    """Features or texts as the endpoint reads them. Raises InvalidArgument."""
    texts = [inputs] if isinstance(inputs, str) else inputs
    try:
        rows = [row if isinstance(row, str) else list(row) for row in texts]
    except TypeError as error:
        raise InvalidArgument(
            f"input is {_shown(inputs)}; it may be a list of features (each a list of numbers; "
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
            f"a feature is not a list of numbers that float32 holds: {error}"
        ) from error


def understood(response: httpx.Response, read_from: Callable[[Json], T]) -> T:
    """What `read_from` finds in an answer. Raises CmclError for one of another form."""
    answer = json_object(response)
    if answer is None:
        raise not_of_cmcl(Side.EMBEDDINGS, response)
    try:
        return read_from(answer)
    except (KeyError, TypeError, AttributeError, ValueError, struct.error) as error:
        message = f"the endpoint answered in a form that this client does not know: {error!r}"
        raise CmclError(message, response.status_code) from error


def migrated(answer: Json) -> Migrated:
    """Vectors of another version, with the error to expect."""
    told = answer["migration"]
    names = (
        "from_version",
        "predicted_error",
        "error_on_rows",
        "rank",
        "condition",
        "exact",
    )
    return Migrated(vectors_of(answer), version_of(answer), **{name: told[name] for name in names})


def vectors_of(answer: Json) -> list[list[float]]:
    """The vectors of an answer, decoded."""
    return [_floats(item["embedding"]) for item in answer["data"]]


def version_of(answer: Json) -> int:
    """The version that answered."""
    return int(answer["model"].rpartition("@")[2])


def _floats(encoded: str) -> list[float]:
    data = base64.b64decode(encoded, validate=True)
    return list(struct.unpack(f"<{len(data) // 4}f", data))
