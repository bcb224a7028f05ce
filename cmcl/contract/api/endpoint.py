"""Responses of the embeddings endpoint. Its routes write them themselves, which is faster.

The tests of `tests/unit/serve` compare every response that they get with these types.
"""

from typing import Any, Literal

from pydantic import Field

from cmcl.contract.responses import ApiModel

# Precision of what a collection stores.
FloatType = Literal["float32", "float16"]
VectorType = Literal["float32", "float16", "bit"]


class ErrorDetail(ApiModel):
    """What is wrong: `message` for people, `code` and `param` for programs."""

    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="the field, parameter or header that is wrong")
    code: str = Field(examples=["invalid_value"])


class ErrorResponse(ApiModel):
    """An error in OpenAI's shape."""

    error: ErrorDetail


class EndpointHealth(ApiModel):
    """The answer of a probe."""

    status: str
    application: str | None = Field(
        default=None, description="digest of the application's arguments and release"
    )


class Embedding(ApiModel):
    """One row of the answer."""

    object: Literal["embedding"]
    index: int = Field(description="row of the request")
    embedding: list[float] | str = Field(description="base64: float32, little endian")


class Usage(ApiModel):
    """Always 0: no tokens are counted. OpenAI's clients read it."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(ApiModel):
    """Embeddings by one version, in the order of the input."""

    object: Literal["list"]
    data: list[Embedding]
    model: str = Field(description="name@version that answered", examples=["street-scenes@2"])
    usage: Usage


class MigrationFigures(ApiModel):
    """Between which versions, and how exactly."""

    from_version: int
    to_version: int
    modality: str
    predicted_error: float = Field(description="relative, of rows that were not trained on")
    error_on_rows: float = Field(description="relative, of the rows that were trained on")
    rank: int = Field(description="directions of the old vectors that are used")
    condition: float = Field(description="factor by which rounding of stored vectors may grow")
    exact: bool = Field(description="the old head loses nothing: right for every row")


class MigrationResponse(EmbeddingResponse):
    """Migrated vectors, in the order of the input."""

    migration: MigrationFigures


class ModelEncoder(ApiModel):
    """The encoder that a modality is bound to: it turns raw items into features."""

    name: str
    title: str | None = Field(description="kind and model; null: not configured at this endpoint")
    takes: str | None = Field(
        description="text, image, audio, video or numbers; null: not configured at this endpoint"
    )
    matches: bool | None = Field(
        description="whether its features are those that the version has learned; true while the version "
        "has none of a known encoder. null: not asked (in lists), or it does not answer"
    )
    problem: str | None = Field(description="why raw items are refused, or why that is not known")


class ServedVersions(ApiModel):
    """Versions of the model, by number."""

    live: int = Field(description="that answers requests by name")
    loaded: list[int] = Field(description="in the memory of this replica")
    lineage: list[int] = Field(description="from the first version to the live one")
    retired: list[int] = Field(description="that are no longer served")


class RejectedVersion(ApiModel):
    """A version that could not be loaded."""

    version: int
    generation: int
    kind: str
    reason: str
    failures: int


class ServedModel(ApiModel):
    """A model that answers: OpenAI's fields first."""

    id: str
    object: Literal["model"]
    created: int = Field(description="seconds since 1970")
    owned_by: str
    version: int
    generation: int
    width: int = Field(description="of its embeddings")
    dimensions: list[int]
    modalities: dict[str, int] = Field(description="width of the features, by modality")
    pairs: list[str]
    encoders: dict[str, ModelEncoder] = Field(description="by modality")
    versions: ServedVersions
    compatibility: dict[str, dict[str, float | None] | None] = Field(
        description="by version in memory and pair: relative change of scores of its stored vectors "
        "under queries of the live version; null: not known yet, or not comparable"
    )
    refusal: RejectedVersion | None = Field(
        description="why this replica cannot use the version that was promoted last; null: it is live"
    )


class ModelList(ApiModel):
    """Models that answer."""

    object: Literal["list"]
    data: list[ServedModel]


class SearchStatus(ApiModel):
    """What this replica searches; `progress` and `problem` alone while there is nothing to search."""

    problem: str | None
    version: int | None = None
    revision: int | None = None
    rows: dict[str, int] | None = Field(default=None, description="by modality")
    not_learned: dict[str, int] | None = Field(
        default=None,
        description="number of items by modality that the version has not learned: they are stored, and not searched",
    )
    progress: float | None = Field(
        default=None,
        description="share of the next version's vectors that is computed; null where this replica computes none",
    )
    seconds_left: float | None = Field(
        default=None, description="until the rest is computed, about"
    )


class Collection(ApiModel):
    """A collection: what is stored, and what this replica searches of it."""

    id: str
    object: Literal["collection"]
    model: str
    feature_type: FloatType
    vector_type: VectorType
    dimensions: int | None = Field(description="of its vectors; null: all of the model")
    text_fields: list[str] = Field(description="of payloads, whose words are searched")
    revision: int = Field(description="grows with each write")
    created: int = Field(description="seconds since 1970")
    changed: int = Field(description="seconds since 1970")
    damaged: str | None = Field(description="why it cannot be read")
    searched: SearchStatus | None


class DamagedCollection(ApiModel):
    """A collection whose description cannot be read."""

    id: str
    reason: str


class CollectionList(ApiModel):
    """Collections of the key's owner."""

    object: Literal["list"]
    data: list[Collection]
    damaged: list[DamagedCollection]


class FileCounts(ApiModel):
    """Items of a collection, as OpenAI's API counts them."""

    completed: int
    total: int
    in_progress: int
    failed: int
    cancelled: int


class VectorStore(ApiModel):
    """A collection, as OpenAI's API describes one."""

    id: str
    object: Literal["vector_store"]
    name: str
    created_at: int = Field(description="seconds since 1970")
    last_active_at: int = Field(description="seconds since 1970")
    status: Literal["in_progress", "completed"]
    file_counts: FileCounts
    usage_bytes: int = Field(description="always 0: not counted")
    metadata: dict[str, str]


class VectorStoreList(ApiModel):
    """Collections of the key's owner, by name."""

    object: Literal["list"]
    data: list[VectorStore]
    first_id: str | None
    last_id: str | None
    has_more: bool


Attributes = dict[str, str | float | bool]


class VectorStoreFile(ApiModel):
    """An item of a collection, as OpenAI's API describes a file."""

    id: str
    object: Literal["vector_store.file"]
    created_at: int = Field(description="the collection, seconds since 1970")
    vector_store_id: str
    status: Literal["completed"]
    usage_bytes: int = Field(description="of the payload")
    last_error: None
    attributes: Attributes


class VectorStoreFileList(ApiModel):
    """Items of a collection, by id."""

    object: Literal["list"]
    data: list[VectorStoreFile]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VectorStoreContent(ApiModel):
    """The text of an item."""

    type: Literal["text"]
    text: str


class VectorStoreResult(ApiModel):
    """An item that was found."""

    file_id: str
    filename: str
    score: float
    attributes: Attributes
    content: list[VectorStoreContent]


class VectorStoreSearchPage(ApiModel):
    """Items that were found, best first."""

    object: Literal["vector_store.search_results.page"]
    search_query: list[str]
    data: list[VectorStoreResult]
    has_more: bool
    next_page: str | None


class WriteResult(ApiModel):
    """What was written, and the revision that has it."""

    object: Literal["collection.write"]
    id: str
    rows: int
    revision: int


class DeletedCollection(ApiModel):
    """A collection that was deleted."""

    id: str
    object: Literal["collection.deleted"]
    deleted: Literal[True]


class Span(ApiModel):
    """Where in its parent a part is, in seconds or pages."""

    start: float
    end: float


class StoredItem(ApiModel):
    """An item of a collection."""

    id: str
    modality: str
    payload: dict[str, Any] | None
    parent: str | None = Field(default=None, description="what it is a part of")
    at: Span | None = Field(default=None, description="where in its parent")
    source: str | None = Field(default=None, description="address of the original, if included")
    thumbnail: str | None = Field(
        default=None, description="base64 of a picture or an MP3, if included"
    )


class SearchHit(StoredItem):
    """An item that was found."""

    score: float = Field(
        description="cosine; with `words` alone that of BM25, with both the sum of reciprocal ranks"
    )


class ItemsResponse(ApiModel):
    """Items of a collection, of one version at one revision."""

    object: Literal["list"]
    data: list[StoredItem]
    model: str = Field(description="name@version that is searched")
    revision: int
    rows: int = Field(description="items of the collection, or of the modality")
    next_offset: int | None = Field(description="of the next page; null for the last one")


class SearchResults(ApiModel):
    """Items by score, of one version at one revision."""

    object: Literal["list"]
    data: list[SearchHit]
    model: str = Field(description="name@version that answered")
    revision: int
    exact: bool = Field(description="every vector was compared")

    @property
    def version(self) -> int:
        """The version that was searched with."""
        return int(self.model.rpartition("@")[2])


class HeldOutRow(ApiModel):
    """A held-out row, without its features."""

    row: int = Field(description="its number in the dataset's held-out rows, from 0")
    id: str
    label: str | None


class HeldOutList(ApiModel):
    """Held-out rows of a dataset."""

    object: Literal["list"]
    dataset: str
    pair: list[str] = Field(description="the two modalities")
    rows: int = Field(description="rows that can be searched")
    rows_stored: int = Field(
        description="held-out rows of the dataset; more than `rows` of a large one"
    )
    data: list[HeldOutRow]
    next_offset: int | None = Field(description="of the next page; null for the last one")


class HeldOutHit(HeldOutRow):
    """A held-out row that was found."""

    modality: str
    score: float = Field(description="cosine")


class Partner(ApiModel):
    """The other side of the row that was searched for."""

    rank: int = Field(description="1: it is the best result")
    score: float = Field(description="cosine")


class RankedRow(HeldOutRow):
    """A held-out row, the rank of its other side, and what was found first."""

    rank: int = Field(
        description="of its other side among those of all rows; 1: it is the best result"
    )
    first: HeldOutHit


class HeldOutRanks(ApiModel):
    """One version's rank for each of the first held-out rows."""

    object: Literal["list"]
    data: list[RankedRow]
    model: str = Field(description="name@version that answered")
    modality: str = Field(description="the side that was searched for")
    rows: int = Field(description="rows that were compared")


class HeldOutResults(ApiModel):
    """Held-out rows by score, of one version."""

    object: Literal["list"]
    data: list[HeldOutHit]
    model: str = Field(description="name@version that answered")
    dataset: str
    rows: int = Field(description="rows that were compared")
    partner: Partner | None = Field(
        description="null unless a row was searched for in the other modality"
    )
