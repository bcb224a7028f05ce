"""Pictures of what the API returns: a version, a candidate that waits for a decision.

Parameters are structural types, so that the views of the control plane and the results of the client both
fit, and the package depends on neither. A picture of what was not measured is None.
"""

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple, Protocol

from cmcl.pictures.bars import Bound, DriftRow, Share, drift_bars, share_bars
from cmcl.pictures.curves import FULL_BELOW
from cmcl.pictures.dumbbells import Optimality, RecallChange, optimality_bars, recall_changes
from cmcl.pictures.graph import Pair, modality_graph
from cmcl.pictures.matrix import forgetting_matrix
from cmcl.pictures.memory import Memory, MemoryRow
from cmcl.pictures.picture import Picture
from cmcl.pictures.retention import retention_curves
from cmcl.pictures.scales import percent


class _Recall(Protocol):
    @property
    def at_1(self) -> float: ...


class _Evaluation(Protocol):
    @property
    def version(self) -> int: ...
    @property
    def learned(self) -> str | None: ...
    @property
    def recall(self) -> Mapping[str, _Recall]: ...


class _Drift(Protocol):
    @property
    def since_learned(self) -> float: ...
    @property
    def against_parent(self) -> float: ...


class _Quality(Protocol):
    @property
    def now(self) -> float: ...
    @property
    def best(self) -> float | None: ...


class _Protection(Protocol):
    @property
    def blocked_share(self) -> float: ...


class _Head(Protocol):
    @property
    def free_share(self) -> float: ...
    @property
    def input_directions(self) -> int: ...
    @property
    def input_width(self) -> int: ...


class _Certificate(Protocol):
    @property
    def drift(self) -> Mapping[str, _Drift]: ...
    @property
    def quality(self) -> Mapping[str, _Quality]: ...
    @property
    def protection(self) -> Mapping[str, _Protection]: ...


class _Pair(Protocol):
    @property
    def first(self) -> str: ...
    @property
    def second(self) -> str: ...


class _Learned(Protocol):
    @property
    def dataset(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def pair(self) -> _Pair: ...


class _Measured(Protocol):
    @property
    def pair(self) -> _Pair: ...
    @property
    def recall(self) -> _Recall | None: ...


class VersionLike(Protocol):
    """A version with its measurements: `GET /v1/models/{model}/versions/{version}`."""

    @property
    def certificate(self) -> _Certificate: ...
    @property
    def evaluation_matrix(self) -> Sequence[_Evaluation]: ...
    @property
    def evaluation_only(self) -> Sequence[_Measured]: ...
    @property
    def capacity(self) -> Mapping[str, _Head]: ...
    @property
    def lineage(self) -> Sequence[_Learned]: ...


class VersionPictures(NamedTuple):
    """The pictures of a version."""

    forgetting: Picture | None
    retention: Picture | None
    drift: Picture | None
    optimality: Picture | None
    protection: Picture | None
    capacity: Picture | None
    graph: Picture


def version_pictures(version: VersionLike, drift_bound: float | None = None) -> VersionPictures:
    """Draw a version. `drift_bound`: the largest permitted drift, if there is one."""
    names = {line.dataset: line.name for line in version.lineage}
    certificate, memory = version.certificate, memory_of(version)
    best = [
        Optimality(names.get(dataset, dataset), quality.now, quality.best)
        for dataset, quality in certificate.quality.items()
        if quality.best is not None
    ]
    drift = [
        DriftRow(names.get(dataset, dataset), each.since_learned, each.against_parent)
        for dataset, each in certificate.drift.items()
    ]
    return VersionPictures(
        forgetting_matrix(memory) if memory.in_order else None,
        retention_curves(memory) if memory.in_order else None,
        drift_bars(drift, drift_bound) if drift else None,
        optimality_bars(best) if best else None,
        _protection(certificate.protection),
        _capacity(version.capacity),
        modality_graph(_pairs(version)),
    )


def memory_of(version: VersionLike) -> Memory:
    """Return R@1 of every version up to this one on the datasets that it knows."""
    names = {line.dataset: line.name for line in version.lineage}
    rows = version.evaluation_matrix
    measured = [each for each in names if any(each in row.recall for row in rows)]
    return Memory(
        [names[each] for each in measured],
        [
            MemoryRow(
                row.version,
                "nothing" if row.learned is None else names.get(row.learned, row.learned),
                [row.recall[each].at_1 if each in row.recall else None for each in measured],
            )
            for row in rows
        ],
    )


def _protection(heads: Mapping[str, _Protection]) -> Picture | None:
    rows = [Share(modality, head.blocked_share) for modality, head in heads.items()]
    return share_bars("Share of each head that the update could not change", rows) if rows else None


def _capacity(
    heads: Mapping[str, _Head], before: Mapping[str, _Head | None] | None = None
) -> Picture | None:
    bound = Bound(FULL_BELOW, f"full below {percent(FULL_BELOW, 0)} %", is_minimum=True)
    rows = []
    for modality, head in heads.items():
        then = (before or {}).get(modality)
        note = f"{head.input_directions} of {head.input_width} inputs used"
        if then is not None:
            note = f"{percent(then.free_share)} % before, {note}"
        rows.append(Share(modality, head.free_share, note))
    heading = "Free share of each head, for further datasets"
    return share_bars(heading, rows, bound) if rows else None


def _pairs(version: VersionLike) -> list[Pair]:
    """Return the learned and the emergent pairs, each with the mean recall of its datasets in this version."""
    newest = version.evaluation_matrix[-1].recall if version.evaluation_matrix else {}
    recalls: dict[tuple[str, str], list[float]] = {}
    counts: dict[tuple[str, str], int] = {}
    for line in version.lineage:
        low, high = sorted((line.pair.first, line.pair.second))
        counts[low, high] = counts.get((low, high), 0) + 1
        if line.dataset in newest:
            recalls.setdefault((low, high), []).append(newest[line.dataset].at_1)
    learned = [
        Pair(*pair, fmean(recalls[pair]) if pair in recalls else None, datasets=count)
        for pair, count in counts.items()
    ]
    return [*learned, *emergent_pairs(version.evaluation_only, counts.keys())]


def emergent_pairs(
    measured: Sequence[_Measured], learned: Collection[tuple[str, str]]
) -> list[Pair]:
    """Return the pairs that were measured and never trained, each with the mean recall of its datasets.

    `learned`: pairs in alphabetical order.
    """
    recalls: dict[tuple[str, str], list[float]] = {}
    for each in measured:
        low, high = sorted((each.pair.first, each.pair.second))
        if each.recall is not None and (low, high) not in learned:
            recalls.setdefault((low, high), []).append(each.recall.at_1)
    return [Pair(*pair, fmean(found), emergent=True) for pair, found in recalls.items()]


# --- A candidate ----------------------------------------------------------------------------------


class _Bound(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def permitted(self) -> float | None: ...


class _CandidateDataset(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def recall_before(self) -> _Recall | None: ...
    @property
    def recall_after(self) -> _Recall | None: ...
    @property
    def drift_after(self) -> float | None: ...
    @property
    def drift_against_parent(self) -> float | None: ...
    @property
    def is_new(self) -> bool: ...


class _CapacityChange(Protocol):
    @property
    def before(self) -> _Head | None: ...
    @property
    def after(self) -> _Head: ...


class CandidateLike(Protocol):
    """A candidate beside its parent: `GET /v1/jobs/{job}/candidate`."""

    @property
    def parent(self) -> int | None: ...
    @property
    def bounds(self) -> Sequence[_Bound]: ...
    @property
    def datasets(self) -> Sequence[_CandidateDataset]: ...
    @property
    def capacity(self) -> Mapping[str, _CapacityChange]: ...
    @property
    def protection(self) -> Mapping[str, _Protection]: ...


class CandidatePictures(NamedTuple):
    """The pictures of a candidate: what publishing it would change."""

    recall: Picture | None
    drift: Picture | None
    capacity: Picture | None
    protection: Picture | None


def candidate_pictures(candidate: CandidateLike) -> CandidatePictures:
    """Draw a candidate beside its parent."""
    bounds = {bound.name: bound.permitted for bound in candidate.bounds}
    recall = [
        RecallChange(
            f"{each.name} (new)" if each.is_new else each.name,
            each.recall_before.at_1 if each.recall_before else None,
            each.recall_after.at_1 if each.recall_after else None,
        )
        for each in candidate.datasets
        if each.recall_before or each.recall_after
    ]
    drift = [
        DriftRow(each.name, each.drift_after, each.drift_against_parent)
        for each in candidate.datasets
        if each.drift_after is not None
    ]
    before = "untrained" if candidate.parent is None else f"version {candidate.parent}"
    return CandidatePictures(
        recall_changes(recall, before, "candidate") if recall else None,
        drift_bars(drift, bounds.get("max_drift")) if drift else None,
        _capacity(
            {modality: change.after for modality, change in candidate.capacity.items()},
            {modality: change.before for modality, change in candidate.capacity.items()},
        ),
        _protection(candidate.protection),
    )
