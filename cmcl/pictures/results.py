"""Pictures of what the API returns: a version, a candidate, and the versions of a model.

A picture of what was not measured is None.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from cmcl.contract.api.jobs import Candidate
from cmcl.contract.api.versions import DatasetFigures, EvaluationRow, Version, VersionSummary
from cmcl.contract.capacity import FULL_BELOW
from cmcl.contract.version import (
    HeadCapacity,
    LearnedDataset,
    MeasuredDataset,
    Protection,
    VersionManifest,
)
from cmcl.pictures.bars import Bound, DriftRow, Share, drift_bars, share_bars
from cmcl.pictures.curves import drift_curve, optimality_curve
from cmcl.pictures.dumbbells import Optimality, RecallChange, optimality_bars, recall_changes
from cmcl.pictures.graph import Pair, modality_graph
from cmcl.pictures.matrix import forgetting_matrix
from cmcl.pictures.memory import Memory, MemoryRow
from cmcl.pictures.picture import Picture
from cmcl.pictures.retention import retention_curves
from cmcl.pictures.scales import percent


class VersionPictures(NamedTuple):
    """The pictures of a version."""

    forgetting: Picture | None
    retention: Picture | None
    drift: Picture | None
    optimality: Picture | None
    protection: Picture | None
    capacity: Picture | None
    graph: Picture


def version_pictures(version: Version) -> VersionPictures:
    """Draw a version with its measurements, as the API returns it."""
    return manifest_pictures(version.manifest, version.evaluation_matrix, version.evaluation_only)


def manifest_pictures(
    manifest: VersionManifest,
    matrix: Sequence[EvaluationRow],
    evaluation_only: Sequence[MeasuredDataset],
) -> VersionPictures:
    """Draw a version from its manifest.

    `matrix`: recall of the versions up to this one, oldest first. `evaluation_only`: datasets that it was
    measured on and never learned.
    """
    names = {line.dataset: line.name for line in manifest.learned}
    report, memory = manifest.report, memory_of(manifest.learned, matrix)
    best = [
        Optimality(names.get(dataset, dataset), quality.now, quality.best)
        for dataset, quality in report.quality.items()
        if quality.best is not None
    ]
    drift = [
        DriftRow(names.get(dataset, dataset), each.since_learned, each.against_parent)
        for dataset, each in report.drift.items()
    ]
    return VersionPictures(
        forgetting_matrix(memory) if memory.in_order else None,
        retention_curves(memory) if memory.in_order else None,
        drift_bars(drift, manifest.spec.drift_bound) if drift else None,
        optimality_bars(best) if best else None,
        _protection(report.protection),
        _capacity(report.capacity),
        modality_graph(_pairs(manifest.learned, matrix, evaluation_only)),
    )


def memory_of(lineage: Sequence[LearnedDataset], matrix: Sequence[EvaluationRow]) -> Memory:
    """Return R@1 of every version in `matrix` on the datasets of `lineage` that were measured."""
    names = {line.dataset: line.name for line in lineage}
    measured = [each for each in names if any(each in row.recall for row in matrix)]
    return Memory(
        [names[each] for each in measured],
        [
            MemoryRow(
                row.version,
                "nothing" if row.learned is None else names.get(row.learned, row.learned),
                [row.recall[each].at_1 if each in row.recall else None for each in measured],
            )
            for row in matrix
        ],
    )


def _protection(heads: Mapping[str, Protection]) -> Picture | None:
    rows = [Share(modality, head.blocked_share) for modality, head in heads.items()]
    return share_bars("Share of each head that the update could not change", rows) if rows else None


def _capacity(
    heads: Mapping[str, HeadCapacity], before: Mapping[str, HeadCapacity | None] | None = None
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


def _pairs(
    lineage: Sequence[LearnedDataset],
    matrix: Sequence[EvaluationRow],
    evaluation_only: Sequence[MeasuredDataset],
) -> list[Pair]:
    """Return the learned and the emergent pairs, each with the mean recall of its datasets in this version."""
    newest = matrix[-1].recall if matrix else {}
    recalls: dict[tuple[str, str], list[float]] = {}
    counts: dict[tuple[str, str], int] = {}
    for line in lineage:
        low, high = sorted((line.pair.first, line.pair.second))
        counts[low, high] = counts.get((low, high), 0) + 1
        if line.dataset in newest:
            recalls.setdefault((low, high), []).append(newest[line.dataset].at_1)
    learned = [
        Pair(*pair, fmean(recalls[pair]) if pair in recalls else None, datasets=count)
        for pair, count in counts.items()
    ]
    return [*learned, *emergent_pairs(evaluation_only, counts.keys())]


def emergent_pairs(
    measured: Sequence[MeasuredDataset], learned: Collection[tuple[str, str]]
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


class CandidatePictures(NamedTuple):
    """The pictures of a candidate: what publishing it would change."""

    recall: Picture | None
    drift: Picture | None
    capacity: Picture | None
    protection: Picture | None


def candidate_pictures(candidate: Candidate) -> CandidatePictures:
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


class HistoryPictures(NamedTuple):
    """The pictures of a model over its versions."""

    forgetting: Picture | None
    retention: Picture | None
    drift: Picture | None
    optimality: Picture | None


def history_pictures(
    versions: Iterable[VersionSummary],
    drift_bound: float | None = None,
    names: Mapping[str, str] | None = None,
) -> HistoryPictures:
    """Draw a model over versions, in any order. `drift_bound`: the largest permitted drift, if there is one.

    `names`: names of datasets by id, of those that were learned before the first of the versions.
    """
    in_order = sorted(versions, key=lambda each: each.version)
    memory = _memory(in_order, names or {})
    drift = {each.version: each.max_drift for each in in_order}
    best = {each.version: _optimality(each.by_dataset) for each in in_order}
    return HistoryPictures(
        forgetting_matrix(memory) if memory.in_order else None,
        retention_curves(memory) if memory.in_order else None,
        drift_curve(drift, drift_bound) if set(drift.values()) - {None} else None,
        optimality_curve(best) if set(best.values()) - {(None, None)} else None,
    )


def _memory(versions: Sequence[VersionSummary], names: Mapping[str, str]) -> Memory:
    learned = {each.dataset: each.dataset_name for each in versions if each.dataset is not None}
    names = {**names, **learned}
    recalls = [each.by_dataset.recall if each.by_dataset else {} for each in versions]
    # Datasets in the order in which they were first measured.
    measured = list(dict.fromkeys(dataset for recall in recalls for dataset in recall))
    rows = [
        MemoryRow(
            each.version,
            each.dataset_name,
            [recall.get(dataset) for dataset in measured],
            each.kind == "unlearn",
        )
        for each, recall in zip(versions, recalls, strict=True)
    ]
    return Memory([names.get(dataset, dataset) for dataset in measured], rows)


def _optimality(figures: DatasetFigures | None) -> tuple[float | None, float | None]:
    """Return the mean loss now and the mean attainable loss of the datasets that have both."""
    both = {} if figures is None else figures.quality.keys() & figures.best.keys()
    if figures is None or not both:
        return None, None
    in_order = sorted(both)
    return fmean(figures.quality[each] for each in in_order), fmean(
        figures.best[each] for each in in_order
    )
