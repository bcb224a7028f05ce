"""A version of a model: heads, memory of moments, and the report on drift."""

from collections.abc import Hashable, Iterable
from datetime import datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from cmcl.contract.dataset import EvaluationDataset
from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.job import JobKind, JobSpec, VersionRef
from cmcl.contract.modality import FileEntry, Frozen, Modality, ModalityPair, ModelName, Sha256
from cmcl.contract.model import ModelSpec

# The most earlier datasets that a version measures where no bound needs all of them.
_MOST_MEASURED = 16


class Drift(Frozen):
    """How far the scores of one earlier dataset moved, from its moments alone.

    Relative: root mean square change of x_uᵀ W_uᵀ W_v x_v over *all* row combinations, divided by the root mean square
    of these scores in the version that learned the dataset; 0 where they were all zero.
    """

    since_learned: float = Field(ge=0)
    against_parent: float = Field(ge=0)


class Overlap(Frozen):
    """How much of the ten best results of a query on an earlier dataset stay the same from the parent to a version."""

    rows: int = Field(ge=1, description="that are searched: the held-out ones, or 1000")
    expected: float = Field(
        ge=0, le=1, description="from the dataset's moments, which know no single row"
    )
    halves: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="the same between versions that were solved from one half of its rows each; null: not known",
    )
    measured: float | None = Field(
        default=None, ge=0, le=1, description="on its held-out rows; null: it has none"
    )


class Quality(Frozen):
    """How good an earlier dataset still is, from its moments alone.

    The spectral contrastive loss of the dataset, scaled to −1 in the version that learned it: lower is better, 0 is as
    good as scoring everything zero.
    """

    now: float
    best: float | None = Field(
        default=None,
        exclude_if=lambda best: best is None,
        description="the lowest loss that any two heads of this width reach on the dataset alone. `now` "
        "far above it and above −1: forgotten; far above it and near −1: never learned so well",
    )
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


class Solution(Frozen):
    """How the heads of a version were solved from moments, under the policy `improve`."""

    ridges: dict[str, float] = Field(
        description="by modality: ridge of the whitening, relative to the typical variance of its features"
    )
    directions: int = Field(
        ge=0,
        description="directions that the heads use, `width` at most; in the others the embeddings are zero. They are "
        "the directions that are significant in any dataset, unless one has more of them than were counted",
    )
    groups: tuple[tuple[str, ...], ...] = Field(
        description="modalities that datasets connect; between two groups no score has a meaning"
    )


class Recall(Frozen):
    """Share of held-out queries that retrieve a hit; both directions averaged. Ties count against it.

    `at_1`, `at_5`, `at_10` count by item: a hit is a row whose feature equals that of the query's partner, or whose
    partner's feature equals that of the query, because texts and pictures repeat. At 1 a row with the query's label is
    a hit as well. `own_at_1` and `own_at_10` count the query's own row alone, and rows with an equal feature come
    before it: where nothing repeats and there are no labels, they are the same as `at_1` and `at_10`.
    """

    rows: int = Field(ge=1)
    at_1: float = Field(ge=0, le=1)
    at_5: float = Field(ge=0, le=1)
    at_10: float = Field(ge=0, le=1)
    own_at_1: float | None = Field(
        default=None, ge=0, le=1, description="its own row is the nearest; null: not measured"
    )
    own_at_10: float | None = Field(
        default=None, ge=0, le=1, description="its own row is among the ten nearest"
    )
    accuracy: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="of the nearest class, the mean of its embeddings on the other side; null: no labels",
    )

    @property
    def counts(self) -> str:
        """What `at_1` counts as a hit: `own row`, `equal item` where items repeat, or `same label`."""
        if self.accuracy is not None:
            return "same label"
        by_item, own = (self.at_1, self.at_10), (self.own_at_1, self.own_at_10)
        return "own row" if by_item == own else "equal item"


class MeasuredDataset(EvaluationDataset):
    """A dataset that is measured only, and its recall in one version."""

    recall: Recall | None = Field(default=None, description="null: it was not measured")
    note: str | None = Field(
        default=None, description="why it was not measured, or why its recall is that of chance"
    )


class Halves(Frozen):
    """How the two halves of the rows of a dataset agree, and so what chance changes."""

    agreement: float = Field(
        ge=0,
        description="mean score of true pairs over the root mean square of all scores, by heads of the other half",
    )
    correlation: float = Field(
        ge=-1,
        le=1,
        description="of the scores by heads of one half with those by heads of the other",
    )


class Agreement(Frozen):
    """Mean score of the true pairs of the new dataset over the root mean square of all its scores.

    By heads of an earlier dataset whose pairs are of the same kind: where one scores them higher than the two halves of
    the new dataset score each other. Otherwise by heads of the other half.
    """

    dataset: str | None = Field(description="the earlier dataset; null: none is of the same kind")
    score: float = Field(ge=0)
    least: float = Field(
        description="what chance leaves: two standard errors less than the halves of the earlier dataset, which have fewer "
        "rows to learn from; without one, three standard errors, which rows without any relation hardly reach"
    )

    def remark(self, names: dict[str, str]) -> str:
        """What a score below `least` says. `names`: of the earlier datasets, by id."""
        like = f"those of {names[self.dataset]}" if self.dataset else "rows without any relation"
        return (
            f"the pairs of the new dataset agree by {self.score:.3g}, and {like} by {self.least:.3g}: are some of them "
            "mixed up?"
        )


class EvaluationResult(Frozen):
    """`runs/<job>/a<attempt>/evaluation.json`: a dataset that is measured only, with the version that was live."""

    version: int | None = Field(description="null: the model had no live version yet")
    recall: Recall | None = Field(default=None, description="null: it was not measured")
    note: str | None = Field(
        default=None, description="why it was not measured, or why its recall is that of chance"
    )


class Erasure(Frozen):
    """The receipt of a row that was erased from a dataset."""

    row: str = Field(
        description="BLAKE2 of its features (float32, little-endian, 16 bytes), keyed by the dataset's id"
    )
    copies: int = Field(ge=1, description="how often the dataset had it")
    before: Sha256 = Field(description="of the file with the dataset's sums before")
    after: Sha256 = Field(
        description="of the same file afterwards: that of a dataset that never had the row"
    )
    version: int = Field(ge=1, description="the first version without it")
    job: str
    requested_at: datetime
    requested_by: str
    signature: str | None = Field(
        default=None,
        exclude_if=lambda signature: signature is None,
        description="JWS of the control plane with this receipt, its model and dataset (Ed25519); null: it has no key",
    )


class SignedErasure(Erasure):
    """The payload of a receipt's signature."""

    model: ModelName
    dataset: str


class LearnedDataset(Frozen):
    """One line of a version's lineage: what it learned, in which version, and where the moments are."""

    dataset: str
    name: str
    pair: ModalityPair
    rows: int = Field(ge=1)
    version: int = Field(
        ge=1, description="version of the model that learned it, or merged it from another model"
    )
    reference: int | None = Field(
        default=None,
        ge=1,
        exclude_if=lambda reference: reference is None,
        description="version whose heads its drift and loss are measured against. None: `version`. Set by a "
        "version that unlearned a dataset which `version` had seen",
    )
    moments: FileEntry
    projections: FileEntry | None = Field(
        default=None, description="what queries are compared with; null: not kept"
    )
    shard_digests: tuple[Sha256, ...]
    encoders: dict[Modality, Sha256] = Field(
        default={},
        description="by modality: digest of the identity of the encoder of its features; missing: undeclared",
    )
    rejected_rows: int = Field(
        default=0, ge=0, description="rows that were left out; `datasets/<dataset>/rejected.jsonl`"
    )
    recall: Recall | None = Field(default=None, description="of held-out rows, when learned")
    ridges: dict[Modality, float] = Field(
        default={},
        exclude_if=lambda ridges: not ridges,
        description="by modality: ridge with which half of its rows scores best on the other; empty: not under improve",
    )
    significant_directions: int | None = Field(
        default=None,
        ge=1,
        exclude_if=lambda directions: directions is None,
        description="in which pairs of both halves of its rows agree, rounded up to one of 1, 2, 3, 4, 6, 8, ..., "
        "128; null: more than 128, or the policy is not improve",
    )
    halves: Halves | None = Field(default=None, exclude_if=lambda halves: halves is None)
    attainable: float | None = Field(
        default=None,
        ge=0,
        exclude_if=lambda attainable: attainable is None,
        description="sum of its squared canonical correlations that heads of this width can hold",
    )
    exact_sums: FileEntry | None = Field(
        default=None,
        exclude_if=lambda sums: sums is None,
        description="exact sums of both halves of its rows, and a digest of each row; null: the model is not erasable",
    )
    erased: tuple[Erasure, ...] = Field(
        default=(),
        exclude_if=lambda erased: not erased,
        description="rows that were erased from it",
    )

    @property
    def kept(self) -> dict[str, FileEntry]:
        """What is stored of the dataset itself."""
        files = {
            "moments": self.moments,
            "projections": self.projections,
            "exact sums": self.exact_sums,
        }
        return {name: entry for name, entry in files.items() if entry is not None}


def datasets_to_merge(
    ours: Iterable[LearnedDataset], theirs: Iterable[LearnedDataset]
) -> tuple[LearnedDataset, ...]:
    """Those of `theirs` that `ours` does not have, in their order.

    The same dataset has the same id, as in a branch, or the same moments or files, as where it was posted to both:
    moments alone do not tell, because rounding of sums depends on the number of ranks and on the processor.
    """

    def identities(line: LearnedDataset) -> tuple[Hashable, ...]:
        return line.dataset, line.moments, (line.pair, line.rows, frozenset(line.shard_digests))

    known = {each for line in ours for each in identities(line)}
    return tuple(line for line in theirs if known.isdisjoint(identities(line)))


def datasets_to_measure(
    job: JobSpec, earlier: tuple[LearnedDataset, ...]
) -> tuple[LearnedDataset, ...]:
    """The earlier datasets whose certificate and recall are computed by a job: all that a bound needs, or 16 at most.

    Without a bound, each of more than 16 is measured once in 2, 4, 8, ... versions, as many as it takes, so that a
    version after a thousand datasets costs what it costs after sixteen.
    """
    if job.measures_all or job.spec.drift_bound is not None:
        return earlier
    turns = 1
    while len(earlier) > turns * _MOST_MEASURED:
        turns *= 2
    return earlier[job.version % turns :: turns]


class Protection(Frozen):
    """How much of one head was closed to this update."""

    input_directions: int = Field(ge=0, description="protected directions of the features")
    input_width: int = Field(ge=1)
    output_directions: int = Field(ge=0, description="protected directions of the embeddings")
    output_width: int = Field(ge=1)
    blocked_share: float = Field(ge=0, le=1, description="share of entries that could not move")


class HeadCapacity(Frozen):
    """How full one head is for the next dataset, at the spec's kept energy."""

    free_share: float = Field(ge=0, le=1, description="share of entries that may still move")
    input_directions: int = Field(
        ge=0, description="directions of the features that hold 95 % of energy"
    )
    input_width: int = Field(ge=1)
    output_directions: int = Field(ge=0, description="the same of the partners' embeddings")
    output_width: int = Field(ge=1)


class VersionReport(Frozen):
    """A training job's report on its version."""

    final_loss: float
    updates: int = Field(ge=0)
    ranks: int = Field(ge=1)
    temperature: float | None = Field(default=None, description="at the end of the training")
    seconds: dict[str, float] = Field(default={}, description="time spent in each part of the job")
    protection: dict[str, Protection] = Field(default={}, description="by modality")
    drift: dict[str, Drift] = Field(
        default={},
        description="by earlier dataset that was measured: all, or without a bound on them some in turn",
    )
    quality: dict[str, Quality] = Field(default={}, description="by dataset in `drift`")
    overlap: dict[str, Overlap] = Field(
        default={},
        exclude_if=lambda overlaps: not overlaps,
        description="by dataset in `drift`, with the parent",
    )
    agreement: Agreement | None = Field(
        default=None,
        exclude_if=lambda agreement: agreement is None,
        description="of the pairs of the new dataset; null: the gate did not ask (bounds: auto), or the policy is not improve",
    )
    capacity: dict[str, HeadCapacity] = Field(
        default={},
        description="by modality learned so far; empty if heads were solved, which closes no entry",
    )
    recall_before: Recall | None = Field(
        default=None,
        description="recall of the parent on the new dataset's held-out rows; a new modality starts from the seed",
    )
    shrinkage: Shrinkage | None = Field(
        default=None, description="None: max_drift was kept without shrinking"
    )
    solution: Solution | None = Field(
        default=None,
        exclude_if=lambda solution: solution is None,
        description="None: the policy is not improve",
    )
    evaluation: dict[str, Recall] = Field(
        default={},
        description="by dataset that has evaluation shards: this one, and those in `drift`",
    )
    score_errors: dict[str, dict[str, float]] = Field(
        default={},
        exclude_if=lambda errors: not errors,
        description="by dataset in `evaluation`, how far cosines of all row combinations move (root mean square) where "
        "vectors are stored as `float16`, `int8`, `bit`, or by their first `64`, `128`, ... numbers alone",
    )
    not_evaluated: dict[str, str] = Field(
        default={},
        exclude_if=lambda reasons: not reasons,  # The previous release rejects unknown fields.
        description="reason, by earlier dataset whose held-out rows are missing or damaged in the store",
    )
    evaluation_only: tuple[MeasuredDataset, ...] = Field(
        default=(),
        exclude_if=lambda measured: not measured,
        description="datasets that are measured and never learned, in the order of their arrival; no gate, "
        "mean or certificate counts them",
    )


class VersionManifest(Frozen):
    """Written last: once it can be read, everything that it names is stored.

    `files` maps names of files to digests, and `learned` names the moments of each dataset. Each is stored as the blob
    with that digest, which any number of versions name.
    """

    model: ModelName
    version: int = Field(ge=1)
    parent: int | None = Field(
        default=None, description="None: the first version, trained from the seed"
    )
    job: str
    attempt: int = Field(ge=1)
    kind: JobKind = "learn"
    dataset: str | None = Field(description="that it learned; None: it unlearned one, or merged")
    unlearned: LearnedDataset | None = Field(
        default=None,
        exclude_if=lambda unlearned: unlearned is None,
        description="the line of the parent's lineage that it took out: of kind unlearn",
    )
    merged: VersionRef | None = Field(
        default=None,
        exclude_if=lambda merged: merged is None,
        description="the version whose datasets it added: of kind merge",
    )
    spec: ModelSpec
    code_version: str
    created_at: datetime
    files: dict[str, FileEntry]
    copied_from: ModelName | None = Field(
        default=None,
        exclude_if=lambda model: model is None,
        description="model whose job made it, of a version that a branch has from there; None: this model's",
    )
    learned: tuple[LearnedDataset, ...] = Field(min_length=1)
    encoders: dict[Modality, EncoderIdentity] = Field(
        default={},
        description="by modality: the encoder that the first dataset with a known one fixed",
    )
    report: VersionReport

    @property
    def new_line(self) -> LearnedDataset | None:
        """The line of the dataset that it learned; None: it learned none."""
        return self.learned[-1] if self.dataset is not None else None

    @property
    def earlier(self) -> tuple[LearnedDataset, ...]:
        """Every line but that of the dataset that it learned."""
        return self.learned[:-1] if self.dataset is not None else self.learned

    @property
    def own(self) -> dict[str, FileEntry]:
        """Its files, and those of datasets that it learned, merged or changed. Versions before it name the others."""
        new = [line for line in self.learned if line.version == self.version]
        new += [self.erased_from] if self.erased_from else []
        return self.files | {
            f"{name} of {line.dataset}": entry for line in new for name, entry in line.kept.items()
        }

    @property
    def erased_from(self) -> LearnedDataset | None:
        """The line of the dataset that it erased a row from, if it did."""
        lines = (line for line in self.learned if line.erased and self.kind == "erase")
        return next((line for line in lines if line.erased[-1].version == self.version), None)

    @property
    def subject(self) -> LearnedDataset:
        """The line of the dataset that it learned, unlearned or changed."""
        return self.unlearned or self.erased_from or self.learned[-1]

    def as_in_branch(self, name: ModelName) -> Self:
        """The same version as a branch of that name has it."""
        source = self.copied_from or self.model
        return self.model_copy(update={"model": name, "copied_from": source})

    @property
    def blobs(self) -> frozenset[str]:
        """Digests of everything that it names."""
        return frozenset(
            entry.sha256
            for files in (self.files, *(line.kept for line in self.learned))
            for entry in files.values()
        )


# The path where the control plane notifies replicas that a `live.json` has changed; without a body.
ANNOUNCEMENTS = "/internal/announcements"
# The path where a replica of the endpoint reports the other parts that queries need.
PARTS = "/internal/parts"


class EndpointParts(BaseModel):
    """The parts of the endpoint, as one replica sees them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    encoders: dict[str, str] = Field(description="by name: `ok`, or why it does not answer")
    replicas: dict[str, int] = Field(
        description="number of replicas by Serve's state; empty if Serve's controller does not answer"
    )


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
    traceparent: str | None = Field(
        default=None,
        description="of the job or the request that changed this object last, if it is traced",
    )

    @property
    def order(self) -> tuple[int, int]:
        """The sort key of pointers: the larger one is later."""
        return (self.generation, self.revision)
