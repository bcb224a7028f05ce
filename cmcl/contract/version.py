"""A version of a model: heads, memory of moments, and the report on drift."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from cmcl.contract.modality import Frozen, ModalityPair, ModelName, Sha256
from cmcl.contract.model import ModelSpec
from cmcl.contract.rollout import Canary


class FileEntry(Frozen):
    """A file that belongs to a version; every reader checks the digest itself."""

    sha256: Sha256
    bytes: int = Field(ge=0)


class Drift(Frozen):
    """How far the scores of one earlier dataset moved, from its moments alone.

    Relative: root mean square change of x_uᵀ W_uᵀ W_v x_v over *all* row combinations, divided by
    the root mean square of these scores in the version that learned the dataset.
    """

    since_learned: float = Field(ge=0)
    against_parent: float = Field(ge=0)


class Quality(Frozen):
    """How good an earlier dataset still is, from its moments alone.

    The spectral contrastive loss of the whole dataset, scaled so that the version that learned it
    has −1: lower is better, 0 is as good as scoring everything zero.
    """

    now: float
    norm_change: dict[str, float] = Field(
        description="by modality: relative change of the root mean square norm of the embeddings"
    )


class Shrinkage(Frozen):
    """What keeping `max_drift` cost: the change was shrunk after training.

    Entries were divided by 1 + `penalty` · (their relative energy), then all multiplied by `scale`.
    """

    penalty: float = Field(ge=0)
    scale: float = Field(ge=0, le=1)
    drift_before: float = Field(ge=0)
    drift_after: float = Field(ge=0)
    loss_before: float = Field(description="mean loss of the new rows as they were trained")
    loss_after: float = Field(description="mean loss of the new rows as published")


class Recall(Frozen):
    """Share of held-out queries whose partner is retrieved; both directions averaged.

    A retrieved row is the partner if it has the same feature as the true partner, or if its own
    partner has the same feature as the query: texts repeat, so the row number alone would be
    unfair. At 1 the same label will do as well. `accuracy` is that of the nearest class, a class
    being the mean of its embeddings on the other side; None where there are no labels.
    """

    rows: int = Field(ge=1)
    at_1: float = Field(ge=0, le=1)
    at_5: float = Field(ge=0, le=1)
    at_10: float = Field(ge=0, le=1)
    accuracy: float | None = Field(default=None, ge=0, le=1)


class LearnedDataset(Frozen):
    """One line of a version's ledger: what it learned, in which version, and where the moments are."""

    dataset: str
    name: str
    pair: ModalityPair
    rows: int = Field(ge=1)
    version: int = Field(ge=1)
    moments: FileEntry
    shard_digests: tuple[Sha256, ...]
    recall: Recall | None = Field(
        default=None, description="on its held-out rows, in the version that learned it"
    )


class Protection(Frozen):
    """How much of one head was closed to this update."""

    input_rank: int = Field(ge=0, description="protected directions of the features")
    input_width: int = Field(ge=1)
    output_rank: int = Field(ge=0, description="protected directions of the embeddings")
    output_width: int = Field(ge=1)
    blocked_share: float = Field(ge=0, le=1, description="share of entries that could not move")


class HeadCapacity(Frozen):
    """How full one head is for the next dataset, at the spec's kept energy."""

    free_share: float = Field(ge=0, le=1, description="share of entries that may still move")
    input_rank: int = Field(ge=0, description="directions of the features that hold 95 % of energy")
    input_width: int = Field(ge=1)
    output_rank: int = Field(ge=0, description="the same of the partners' embeddings")
    output_width: int = Field(ge=1)


class VersionReport(Frozen):
    """A training job's report on its version."""

    final_loss: float
    updates: int = Field(ge=0)
    ranks: int = Field(ge=1)
    temperature: float | None = Field(default=None, description="at the end of the training")
    seconds: dict[str, float] = Field(default={}, description="time spent in each part of the job")
    protection: dict[str, Protection] = Field(default={}, description="by modality")
    drift: dict[str, Drift] = Field(default={}, description="by earlier dataset")
    quality: dict[str, Quality] = Field(default={}, description="by earlier dataset")
    capacity: dict[str, HeadCapacity] = Field(default={}, description="by modality learned so far")
    recall_before: Recall | None = Field(
        default=None,
        description="recall of the parent on the new dataset's held-out rows; a new modality starts from "
        "the seed",
    )
    shrinkage: Shrinkage | None = Field(
        default=None, description="None: max_drift was kept without shrinking"
    )
    evaluation: dict[str, Recall] = Field(
        default={}, description="by dataset that has evaluation shards, this one included"
    )
    not_evaluated: dict[str, str] = Field(
        default={},
        # Readers of the previous release reject unknown fields, so it is omitted if empty.
        exclude_if=lambda reasons: not reasons,
        description="reason, by earlier dataset whose held-out rows are missing or damaged in the store",
    )


class VersionManifest(Frozen):
    """Written last: once it can be read, every file that it lists is stored.

    `files` maps file names to digests. The files are stored beside the manifest or, for a version that a
    branch has from its source, beside the source's manifest of the same number. The moments of single
    datasets are stored under `datasets/<dataset>/` and listed in `learned`.
    """

    model: ModelName
    version: int = Field(ge=1)
    parent: int | None = Field(
        default=None, description="None: the first version, trained from the seed"
    )
    job: str
    attempt: int = Field(ge=1)
    dataset: str
    spec: ModelSpec
    code_version: str
    created_at: datetime
    files: dict[str, FileEntry]
    files_in: ModelName | None = Field(
        default=None,
        exclude_if=lambda model: model is None,
        description="model whose folder has the files; None: this model's",
    )
    learned: tuple[LearnedDataset, ...] = Field(min_length=1)
    report: VersionReport


# The path where the control plane notifies replicas that `live.json` has changed.
ANNOUNCEMENTS = "/internal/announcements"


class Announcement(BaseModel):
    """The body of the notification. It is only a hint: replicas then read the store."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: ModelName
    generation: int = Field(ge=1)
    revision: int = Field(default=0, ge=0)


class LivePointer(BaseModel):
    """`models/<model>/live.json`: the serving state of a model, read by the replicas.

    Unknown fields are ignored, so that a newer control plane can add fields for newer replicas.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    generation: int = Field(ge=1, description="increases with each change of the live version")
    version: int = Field(ge=1, description="the live version")
    revision: int = Field(default=0, ge=0, description="increases with each change of this object")
    owner: str | None = Field(
        default=None, description="the model's owner; None: any caller with a valid key may use it"
    )
    retired: tuple[int, ...] = Field(
        default=(), description="versions that can no longer be served"
    )
    candidate: Canary | None = Field(default=None, description="the canary beside the live version")

    @property
    def order(self) -> tuple[int, int]:
        """The sort key of pointers: the larger one is later."""
        return (self.generation, self.revision)
