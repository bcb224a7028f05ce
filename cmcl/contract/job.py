"""An attempt of a job: its specification, progress, failure, and what it reports for its trace.

A traceparent is the value of the header of W3C Trace Context: version, trace id, span id and flags, in hexadecimal
digits. It is kept as text, and one that cannot be read counts as none: no job fails because of its trace.
"""

from datetime import datetime
from hashlib import blake2b
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cmcl.contract.dataset import DatasetManifest, EvaluationDataset
from cmcl.contract.modality import Frozen, ModelName
from cmcl.contract.model import ModelSpec
from cmcl.contract.responses import KNOWN_OR_TEXT, ApiModel

# `waiting`: the warm ranks are busy with another attempt.
Phase = Literal[
    "waiting",
    "starting",
    "reading",
    "moments",
    "training",
    "limiting",
    "certifying",
    "writing",
    "done",
]

AttemptFailureReason = Literal[
    "invalid_dataset", "training_failed", "store_damaged", "cannot_combine"
]

# learn: a dataset becomes a part of the next version.
# unlearn, erase, merge: the next version is one that never saw a dataset, whose dataset never had a row, or that has
# learned what two branches have. They read moments alone, and no row.
# evaluate: a dataset is measured with the live version, and no version is made.
JobKind = Literal["learn", "unlearn", "erase", "merge", "evaluate"]
# Kinds whose dataset is prepared.
READS_ROWS: frozenset[JobKind] = frozenset({"learn", "evaluate"})

MOST_STAGES = 100


class VersionRef(Frozen):
    """A version of a model."""

    model: ModelName
    version: int = Field(ge=1)

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"


class ErasedRow(Frozen):
    """A row that is erased from a dataset: its features as they were learned (float32), in the order of the pair.

    `row`: its `row_digest`. The control plane forgets the features when the job has ended.
    """

    dataset: str
    row: str
    first: tuple[float, ...] = Field(default=(), repr=False)
    second: tuple[float, ...] = Field(default=(), repr=False)
    requested_at: datetime
    requested_by: str


def row_digest(dataset: str, first: bytes, second: bytes) -> str:
    """BLAKE2 of a row's features (float32, little-endian), keyed by the id of its dataset: 32 hexadecimal digits."""
    return blake2b(first + second, key=dataset.encode(), digest_size=16).hexdigest()


class JobSpec(Frozen):
    """Everything an attempt needs; written to `runs/<job>/a<attempt>/spec.json` before the attempt is
    submitted.

    `dataset` is what a job that reads rows learns, `unlearns` the dataset that one of kind unlearn takes out
    of the parent, `erases` the row that one of kind erase takes out of a dataset, and `merges` the version whose datasets one of kind merge adds to it; the others are None.
    `parent` is the version to start from; None means the first version, trained from the seed.
    `resume_from` is the key of an earlier attempt's checkpoint from which this one resumes; None means
    from the beginning. The resulting version is the same.
    `evaluation_only` lists the datasets that the model measures and never learns.
    Of the kind `evaluate`, `version` and `parent` both are the version that is measured.
    """

    job: str
    kind: JobKind = "learn"
    attempt: int = Field(ge=1)
    model: ModelName
    version: int = Field(ge=1)
    parent: int | None
    spec: ModelSpec
    dataset: DatasetManifest | None = None
    unlearns: str | None = None
    erases: ErasedRow | None = None
    merges: VersionRef | None = None
    resume_from: str | None = None
    evaluation_only: tuple[EvaluationDataset, ...] = ()
    measures_all: bool = Field(
        default=False,
        description="whether a bound needs the certificate and recall of every earlier dataset; without one they are "
        "measured in turn",
    )
    measures_agreement: bool = Field(
        default=False,
        description="whether a bound is about how the new pairs agree, which takes up to half a second for each of four "
        "earlier datasets",
    )
    traceparent: str | None = Field(
        default=None, description="of the attempt's span, if it is traced"
    )

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Self:
        needed = "dataset" if self.kind in READS_ROWS else f"{self.kind}s"
        given = {
            name
            for name in ("dataset", "unlearns", "erases", "merges")
            if getattr(self, name) is not None
        }
        if given != {needed}:
            raise ValueError(f"a job of kind {self.kind} needs {needed} alone, got {sorted(given)}")
        return self

    @property
    def learns(self) -> DatasetManifest:
        """The dataset of a job that reads rows."""
        if self.dataset is None:
            raise ValueError(f"job {self.job} of kind {self.kind} reads no rows")
        return self.dataset


class Progress(ApiModel):
    """What an attempt shows while it runs, written by rank 0 (`running/` of object storage).

    Rows, rates and remaining time refer to the current phase, and are absent if it has none.
    """

    phase: Annotated[Phase, KNOWN_OR_TEXT]
    updates_done: int = Field(default=0, ge=0)
    updates_total: int = Field(default=0, ge=0)
    rows_done: int = Field(default=0, ge=0, description="rows read, over all ranks")
    rows_total: int = Field(default=0, ge=0)
    loss: float | None = Field(default=None, description="loss of the last batch")
    rows_per_second: float | None = Field(default=None, description="over all ranks")
    gradient_norm: float | None = Field(
        default=None, description="norm of both heads' gradient, after the mask"
    )
    removed_share: float | None = Field(
        default=None, description="share of the gradient's square that the mask removed, 0 to 1"
    )
    drift: float | None = Field(
        default=None,
        description="first-order estimate of how far earlier scores have moved in this job, "
        "relative to their size; the certificate of the finished version is no estimate, and states its error",
    )
    eta_seconds: float | None = Field(
        default=None, description="estimated time until the phase ends"
    )
    ranks: int | None = Field(default=None, description="processes that share the batch")
    note: str | None = Field(
        default=None,
        description="why the attempt has no ranks yet; or what it waits for, as the object storage",
    )
    resumed_at: int | None = Field(
        default=None, description="updates done before the checkpoint that it resumed from"
    )
    seconds: dict[Annotated[Phase, KNOWN_OR_TEXT], float] = Field(
        default={},
        description="by phase: seconds that the ranks have spent in it, the present one included",
    )
    at: datetime


class Failure(Frozen):
    """`runs/<job>/a<attempt>/failure.json`: written if another attempt would fail the same way.

    `invalid_dataset`: the new rows. `store_damaged`: stored data of earlier datasets. `cannot_combine`: what
    was to be unlearned or merged.
    """

    reason: AttemptFailureReason
    message: str


def submission_id(job: str, attempt: int) -> str:
    """The id of an attempt at the launcher."""
    return f"{job}-a{attempt}"


class DriverReady(Frozen):
    """`driver.json`: the driver on the cluster is warm, so that the next dataset waits for no process to start.

    A hint: nothing reads it but what waits for a start. `ranks`: those that are resident, 0 where the first attempt
    starts them.
    """

    at: datetime
    ranks: int = Field(ge=0)


class AttemptRequest(Frozen):
    """`attempts/<submission id>.json`: an attempt that the driver on the cluster is to train.

    Written by the control plane. The driver deletes it when the attempt has ended; a request that disappears before is
    cancelled. Without room for all `ranks`, the attempt is trained by as few as `min_ranks`. `idle_seconds`: how long
    the ranks stay without a further attempt; 0: permanently.
    """

    job: str
    attempt: int = Field(ge=1)
    owner: str
    ranks: int = Field(ge=1)
    min_ranks: int = Field(ge=1)
    gpus_per_rank: float = Field(ge=0)
    idle_seconds: float = Field(ge=0)


class AttemptOutcome(Frozen):
    """`outcomes/<submission id>.json`: how a requested attempt has ended. The first writer counts.

    `stopped`: on request of the control plane. `message`: the reason of a failure, with the traceback of a rank.
    """

    state: Literal["succeeded", "failed", "stopped"]
    message: str = ""


class Stage(BaseModel):
    """One stage of a preparation or an attempt, by the clock of the machine that ran it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    began_at: datetime
    seconds: float = Field(ge=0)


class StageReport(BaseModel):
    """`stages.json` of a preparation or an attempt: written before its result, if it is traced.

    `traceparent`: as in the request or the specification. A report of an earlier one does not count.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    traceparent: str
    stages: tuple[Stage, ...] = Field(max_length=MOST_STAGES)
