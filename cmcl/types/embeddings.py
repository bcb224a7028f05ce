"""What the query endpoint answers."""

from dataclasses import dataclass

from pydantic import Field

from cmcl.types.answer import Answer


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
