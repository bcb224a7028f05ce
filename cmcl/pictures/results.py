"""Pictures of what the API returns: a version, a candidate, the versions of a model, its capacity, and a job.

Each is drawn as one of seven kinds. A picture of what was not measured is None.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from cmcl.contract.api.jobs import Candidate, JobPhase
from cmcl.contract.api.versions import EvaluationRow, Version, VersionSummary
from cmcl.contract.version import LearnedDataset, MeasuredDataset, Recall, VersionManifest
from cmcl.pictures.graph import Pair, modality_graph
from cmcl.pictures.lines import Line, lines
from cmcl.pictures.matrix import Memory, MemoryRow, forgetting_matrix
from cmcl.pictures.picture import WIDTH, Picture
from cmcl.pictures.rows import Bar, RecallChange, bars, dumbbells
from cmcl.pictures.scales import duration, fine_percent, percent, points_of, significant
from cmcl.pictures.svg import brief

# Curves of more datasets than this are drawn without names, but for those that lost most.
_MOST_NAMED, _NAMED_OF_MANY = 10, 6
# Of the others, evenly chosen: each line takes 270 bytes of a page.
_MOST_THIN = 20


class VersionPictures(NamedTuple):
    """The pictures of a version."""

    forgetting: Picture | None
    retention: Picture | None
    drift: Picture | None
    graph: Picture


class CandidatePictures(NamedTuple):
    """The pictures of a candidate: what publishing it would change."""

    recall: Picture | None
    drift: Picture | None


class HistoryPictures(NamedTuple):
    """The pictures of a model over its versions."""

    forgetting: Picture | None
    retention: Picture | None
    drift: Picture | None


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
    drift = {names.get(each, each): found.since_learned for each, found in report.drift.items()}
    return VersionPictures(
        forgetting_matrix(memory) if memory.in_order else None,
        retention_curves(memory) if memory.in_order else None,
        drift_bars(drift, manifest.spec.drift_bound) if drift else None,
        modality_graph(
            modality_pairs(manifest.learned, matrix[-1].recall if matrix else {}, evaluation_only)
        ),
    )


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
    drift = {
        each.name: each.drift_after for each in candidate.datasets if each.drift_after is not None
    }
    before = "untrained" if candidate.parent is None else f"version {candidate.parent}"
    return CandidatePictures(
        recall_changes(recall, before, "candidate") if recall else None,
        drift_bars(drift, bounds.get("max_drift")) if drift else None,
    )


def history_pictures(
    versions: Iterable[VersionSummary],
    drift_bound: float | None = None,
    names: Mapping[str, str] | None = None,
) -> HistoryPictures:
    """Draw a model over versions, in any order. `drift_bound`: the largest permitted drift, if there is one.

    `names`: names of datasets by id, of those that were learned before the first of the versions.
    """
    in_order = sorted(versions, key=lambda each: each.version)
    learned = {each.dataset: each.dataset_name for each in in_order if each.dataset is not None}
    names = {**(names or {}), **learned}
    recalls = [each.by_dataset.recall if each.by_dataset else {} for each in in_order]
    # Datasets in the order in which they were first measured.
    measured = list(dict.fromkeys(dataset for recall in recalls for dataset in recall))
    rows = [
        MemoryRow(
            each.version,
            each.title,
            [recall.get(dataset) for dataset in measured],
            each.kind == "unlearn",
        )
        for each, recall in zip(in_order, recalls, strict=True)
    ]
    memory = Memory([names.get(dataset, dataset) for dataset in measured], rows)
    drift = {each.version: each.max_drift for each in in_order}
    return HistoryPictures(
        forgetting_matrix(memory) if memory.in_order else None,
        retention_curves(memory) if memory.in_order else None,
        drift_curve(drift, drift_bound) if set(drift.values()) - {None} else None,
    )


def memory_of(lineage: Sequence[LearnedDataset], matrix: Sequence[EvaluationRow]) -> Memory:
    """Return R@1 of every version in `matrix` on the datasets of `lineage` that were measured."""
    names = {line.dataset: line.name for line in lineage}
    measured = [each for each in names if any(each in row.recall for row in matrix)]
    rows = [
        MemoryRow(
            row.version,
            "nothing" if row.learned is None else names.get(row.learned, row.learned),
            [row.recall[each].at_1 if each in row.recall else None for each in measured],
        )
        for row in matrix
    ]
    return Memory([names[each] for each in measured], rows)


def retention_curves(memory: Memory, *, width: float = WIDTH) -> Picture:
    """Draw the recall of each dataset from the version that learned it to the newest.

    Of more than ten datasets, the six that lost most have names; the others are thin lines, of at most twenty of them.
    """
    order = list(memory.in_order)
    now = memory.rows[-1].recall if order else []
    changes = memory.changes[-1] if order else []
    named = order
    if len(order) > _MOST_NAMED:
        named = sorted(sorted(order, key=lambda each: changes[each] or 0.0)[:_NAMED_OF_MANY])
    thin = [each for each in order if each not in named]
    shown = {*named, *thin[:: math.ceil(len(thin) / _MOST_THIN) or 1]}
    drawn = []
    for each in (each for each in order if each in shown):
        points = [(float(row.version), row.recall[each]) for row in memory.rows]
        note = percent(now[each])
        note += "" if changes[each] is None else f" ({points_of(changes[each])})"
        place = named.index(each) if each in named else 0
        name, is_thin = memory.datasets[each], each not in named
        drawn.append(Line(name, points, note, place, is_thin=is_thin))
    words = memory.describe()
    if len(named) < len(order):
        words += f" The {len(named)} datasets that lost most have names."
    if len(shown) < len(order):
        words += f" {len(shown)} of {len(order)} datasets have a line."
    texts = (f"{memory.metric} of each dataset since it was learned", words)
    return lines(texts, drawn, ("version", f"{memory.metric} in %"), times=100, width=width)


def drift_bars(
    drift: Mapping[str, float | None], bound: float | None = None, *, width: float = WIDTH
) -> Picture:
    """Draw the drift of each earlier dataset since it was learned against its bound, the largest first.

    More than 24 bars are left to the table.
    """
    in_order = sorted(drift.items(), key=lambda each: -(each[1] or 0.0))
    known = [(name, value) for name, value in in_order if value is not None]
    words = "Not measured." if drift else "No earlier dataset."
    if known:
        words = f"Largest: {fine_percent(known[0][1])} %, {brief(known[0][0])}."
    limit = None
    if bound is not None:
        limit = (bound, f"bound {significant(100 * bound)} %")
        over = sum(value > bound for _, value in known)
        kept = f"exceeded by {over} of {len(known)} datasets" if over else "kept by all datasets"
        words += f" The bound of {significant(100 * bound)} % is {kept}." if known else ""
    drawn = [
        Bar(name, value, "not measured" if value is None else f"{fine_percent(value)} %")
        for name, value in in_order
    ]
    return bars(("Drift of earlier datasets", words), drawn, limit, unit="drift", width=width)


def recall_changes(
    rows: Sequence[RecallChange],
    before: str = "before",
    after: str = "after",
    *,
    width: float = WIDTH,
) -> Picture:
    """Draw the recall of each dataset before and after, the largest loss first.

    `before`, `after`: what the two are, such as `version 7` and `candidate`.
    """
    in_order = sorted(rows, key=lambda row: row.change or 0.0)
    known = [row for row in in_order if row.change is not None]
    words = "No dataset was measured both before and after."
    if known:
        words = f"Lowest change: {points_of(known[0].change)} points, {brief(known[0].name)}."
    texts = (f"R@1 of each dataset, {before} and {after}", words)
    return dumbbells(texts, in_order, (before, after), width=width)


def drift_curve(
    drift: Mapping[int, float | None], bound: float | None = None, *, width: float = WIDTH
) -> Picture:
    """Draw the largest drift of an earlier dataset by version, against the bound of the gate."""
    points = [(float(version), value) for version, value in sorted(drift.items())]
    known = [value for _, value in points if value is not None]
    drawn = [Line("largest", points, f"{fine_percent(known[-1])} %" if known else "")]
    words = (
        f"Largest of all versions: {fine_percent(max(known))} %." if known else "Not measured yet."
    )
    limit = None
    if bound is not None:
        says, over = f"{significant(100 * bound)} %", sum(value > bound for value in known)
        words += f" Bound: {says}, exceeded in {over} of {len(known)} versions."
        limit = (bound, f"bound {says}")
    texts, axes = ("Largest drift by version", words), ("version", "change of scores in %")
    return lines(texts, drawn, axes, limit, times=100, reaches=(0.0,), width=width)


def job_phases(phases: Sequence[JobPhase], *, width: float = WIDTH) -> Picture:
    """Draw how long each phase of a job took, in the order in which they ran."""
    total = sum(phase.seconds for phase in phases)
    taken = [duration(each.seconds) + (" so far" if each.running else "") for each in phases]
    drawn = [Bar(each.phase, each.seconds, says) for each, says in zip(phases, taken, strict=True)]
    words = f"{duration(total)} in all." if phases else "The job has not started."
    return bars(("Where the time of the job went", words), drawn, unit="time", width=width)


def modality_pairs(
    lineage: Sequence[LearnedDataset],
    recall: Mapping[str, Recall],
    evaluation_only: Sequence[MeasuredDataset],
) -> list[Pair]:
    """Return the learned pairs, and those that were only measured, each with the mean R@1 of its datasets.

    `recall`: of a version, by dataset that it has learned.
    """
    recalls: dict[tuple[str, str], list[float]] = {}
    counts: dict[tuple[str, str], int] = {}
    for line in lineage:
        low, high = sorted(line.pair.modalities)
        counts[low, high] = counts.get((low, high), 0) + 1
        if line.dataset in recall:
            recalls.setdefault((low, high), []).append(recall[line.dataset].at_1)
    learned = [
        Pair(*pair, fmean(recalls[pair]) if pair in recalls else None, datasets=count)
        for pair, count in counts.items()
    ]
    emergent: dict[tuple[str, str], list[float]] = {}
    for each in evaluation_only:
        low, high = sorted(each.pair.modalities)
        if each.recall is not None and (low, high) not in counts:
            emergent.setdefault((low, high), []).append(each.recall.at_1)
    return [*learned, *(Pair(*pair, fmean(of), emergent=True) for pair, of in emergent.items())]
