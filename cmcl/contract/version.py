"""A version of a model: all heads, the memory of moments, and the proof of what did not move."""

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
    """What a training job found out about the version that it made."""

    final_loss: float
    updates: int = Field(ge=0)
    ranks: int = Field(ge=1)
    temperature: float | None = Field(default=None, description="at the end of the training")
    seconds: dict[str, float] = Field(default={}, description="where the time of the job went")
    protection: dict[str, Protection] = Field(default={}, description="by modality")
    drift: dict[str, Drift] = Field(default={}, description="by earlier dataset")
    quality: dict[str, Quality] = Field(default={}, description="by earlier dataset")
    capacity: dict[str, HeadCapacity] = Field(default={}, description="by modality learned so far")
    recall_before: Recall | None = Field(
        default=None,
        description="of the parent on the new dataset's held-out rows; a modality that was new "
        "starts from the seed",
    )
    shrinkage: Shrinkage | None = Field(
        default=None, description="None: max_drift was kept without shrinking"
    )
    evaluation: dict[str, Recall] = Field(
        default={}, description="by dataset that has evaluation shards, this one included"
    )
    not_evaluated: dict[str, str] = Field(
        default={},
        # Readers of the release before refuse fields that they do not know; most need not meet it.
        exclude_if=lambda told: not told,
        description="why, by earlier dataset whose held-out rows are missing or damaged in the store",
    )


class VersionManifest(Frozen):
    """Written last: once it can be read, every file that it names is in place.

    `files` maps file name to digest; the files lie beside the manifest, or, for a version that a branch
    has from its source, beside the source's manifest of the same number. The moments of single
    datasets lie under `datasets/<dataset>/` instead and are named in `learned`.
    """

    model: ModelName
    version: int = Field(ge=1)
    parent: int | None = Field(default=None, description="None: grown from the seed alone")
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
        description="model in whose folder the files lie; none: this one's",
    )
    learned: tuple[LearnedDataset, ...] = Field(min_length=1)
    report: VersionReport


# Where the control plane tells replicas at once that `live.json` was written anew.
ANNOUNCEMENTS = "/internal/announcements"


class Announcement(BaseModel):
    """What it posts there. Nobody need trust it: replicas look at the store, and believe that."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: ModelName
    generation: int = Field(ge=1)
    revision: int = Field(default=0, ge=0)


class LivePointer(BaseModel):
    """`models/<model>/live.json`: all that the replicas are told about a model.

    Unknown fields are ignored, so that a newer control plane can tell older replicas more.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    generation: int = Field(ge=1, description="grows with each change of the version that answers")
    version: int = Field(ge=1, description="the version that answers")
    revision: int = Field(default=0, ge=0, description="grows with each change of anything here")
    owner: str | None = Field(
        default=None, description="whose model it is; None: whoever may ask at all may ask for it"
    )
    retired: tuple[int, ...] = Field(default=(), description="versions that answer no more")
    candidate: Canary | None = Field(
        default=None, description="a version on trial beside the one that answers"
    )

    @property
    def order(self) -> tuple[int, int]:
        """Which of two pointers is the later one: the one with the larger order."""
        return (self.generation, self.revision)
