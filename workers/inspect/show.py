"""Answers as plain text for people, or as one JSON document."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cmcl.contract.capacity import FULL_BELOW
from workers.inspect.capacity import ModalityCapacity, ModelCapacity
from workers.inspect.compare import ComparedDataset, Comparison
from workers.inspect.merge import MergedExports
from workers.inspect.migrate import Migrated
from workers.inspect.preflight import DatasetOutlook, HeadOutlook
from workers.inspect.rows import Findings
from workers.nullspace.capacity import EnergyRanks

Answer = ModelCapacity | DatasetOutlook | Comparison | Migrated | MergedExports

_NOTHING = "–"
_COUNTED = (
    "rows",
    "width",
    "expected_width",
    "nan",
    "infinite",
    "zero_rows",
    "duplicate_rows",
    "constant_columns",
)


def as_json(answer: Answer) -> str:
    """One line of JSON. Numbers that are not finite become null."""
    return json.dumps(finite(asdict(answer)), allow_nan=False)


def as_text(answer: Answer) -> str:
    """Tables with aligned columns, and a line that explains them."""
    match answer:
        case ModelCapacity():
            lines = _capacity(answer)
        case DatasetOutlook():
            lines = _outlook(answer)
        case Comparison():
            lines = _comparison(answer)
        case Migrated():
            lines = _migrated(answer)
        case MergedExports():
            lines = _merged(answer)
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in rows
    ]


def _capacity(answer: ModelCapacity) -> Iterator[str]:
    yield f"{answer.model}@{answer.version}: how full its heads are"
    yield ""
    rows = [["modality", "inputs 90/95/99 %", "outputs 90/95/99 %", "blocked", "datasets left"]]
    rows += [_capacity_row(name, one) for name, one in answer.modalities.items()]
    yield from aligned(rows)
    yield ""
    yield from aligned(_history(answer.modalities))
    yield ""
    yield f"Blocked: entries that hold {answer.kept_energy:.0%} of the energy of earlier scores."
    yield (
        f"Datasets left: until less than {FULL_BELOW:.0%} is free, if each takes what the latest "
        f"took; {_NOTHING} if that cannot be said. * learned in that version."
    )
    yield from answer.remarks


def _capacity_row(name: str, one: ModalityCapacity) -> list[str]:
    left = one.forecast.datasets_left
    return [
        name,
        _ranks(one.now.inputs),
        _ranks(one.now.outputs),
        f"{one.now.blocked_share:.1%}",
        _NOTHING if left is None else str(left),
    ]


def _ranks(ranks: EnergyRanks) -> str:
    return f"{ranks.at_90}/{ranks.at_95}/{ranks.at_99} of {ranks.width}"


def _history(modalities: Mapping[str, ModalityCapacity]) -> list[list[str]]:
    """Free shares: a column for each version, since modalities begin at different ones."""
    versions = sorted({share.version for one in modalities.values() for share in one.history})
    rows = [["free after version", *map(str, versions)]]
    for name, one in modalities.items():
        by_version = {
            share.version: f"{share.free_share:.1%}{'*' if share.learned else ' '}"
            for share in one.history
        }
        rows.append([name, *(by_version.get(version, "") for version in versions)])
    return rows


def _outlook(answer: DatasetOutlook) -> Iterator[str]:
    first, second = answer.pair
    yield f"A dataset of {first},{second} for {answer.model}@{answer.version}"
    if answer.findings:
        yield ""
        yield from aligned(_findings_rows(answer.findings))
    if answer.heads:
        yield ""
        yield from aligned(_outlook_rows(answer.heads))
    yield ""
    yield from (f"It would be refused. {words}" for words in answer.refusals)
    yield from answer.advice
    if not answer.refusals and not answer.advice:
        yield "Nothing speaks against it."


def _findings_rows(findings: Mapping[str, Findings]) -> list[list[str]]:
    rows = [["modality", *(name.replace("_", " ") for name in _COUNTED)]]
    for modality, found in findings.items():
        counts = asdict(found)
        rows.append([modality, *(f"{counts[name]:,}" for name in _COUNTED)])
    return rows


def _outlook_rows(heads: Mapping[str, HeadOutlook]) -> list[list[str]]:
    rows = [
        [
            "modality",
            "protected",
            "familiarity",
            "distance",
            "learnable",
            "free",
            "open to it",
            "free after",
        ]
    ]
    for name, one in heads.items():
        found = one.moments
        shares = (found.learnable_share, found.free_share, one.open_share, found.free_share_after)
        rows.append(
            [
                name,
                f"{found.protected_share:.1%}",
                _decimal(found.familiarity),
                _decimal(found.moment_distance),
                *(f"{share:.1%}" for share in shares),
            ]
        )
    return rows


def _comparison(answer: Comparison) -> Iterator[str]:
    old, new = answer.from_version, answer.to_version
    yield f"{answer.model}: vectors stored by version {old}, queries by version {new}"
    yield "Root mean square change of all scores, relative to their size."
    for dataset in answer.datasets:
        yield ""
        yield f"{dataset.name} ({dataset.dataset}), {','.join(dataset.pair)}"
        yield from aligned(_compared_rows(dataset))
    if any(dataset.measured is None for dataset in answer.datasets):
        yield ""
        yield f"{_NOTHING}: the dataset has no held-out rows."


def _compared_rows(dataset: ComparedDataset) -> list[list[str]]:
    """A line for each question, a column for each way to answer it."""
    found, measured = [dataset.predicted], dataset.measured
    overlaps: tuple[float | None, float | None] = (None, None)
    if measured is not None:
        found += [measured.scores, measured.unit_scores]
        overlaps = (measured.first_stored_overlap, measured.second_stored_overlap)
    rows = [
        ["", "predicted", "held-out", "unit vectors", "top-10 overlap"],
        _compared_row("drift", [one.both_new for one in found], None),
    ]
    sides = ([one.first_stored for one in found], [one.second_stored for one in found])
    for modality, mixed, overlap in zip(dataset.pair, sides, overlaps, strict=True):
        before, reindexed = [one.against_old for one in mixed], [one.against_new for one in mixed]
        rows.append(_compared_row(f"{modality} stored, against before", before, overlap))
        rows.append(_compared_row(f"{modality} stored, against re-indexed", reindexed, None))
    return rows


def _compared_row(name: str, values: Sequence[float], overlap: float | None) -> list[str]:
    cells = [_decimal(value) for value in values] + [_NOTHING] * (3 - len(values))
    return [name, *cells, "" if overlap is None else f"{overlap:.1%}"]


def _migrated(answer: Migrated) -> Iterator[str]:
    yield (
        f"{answer.vectors:,} vectors of {answer.modality!r}, from {answer.model}@"
        f"{answer.from_version} to {answer.model}@{answer.to_version}"
    )
    yield f"rank             {answer.rank} of {answer.width}"
    yield f"condition        {answer.condition:.3g}"
    exactly = " (exact: the old head loses nothing)" if answer.exact else ""
    yield f"predicted error  {answer.predicted_error:.3g}{exactly}"
    yield f"on learned rows  {answer.error_on_rows:.3g}"
    if not answer.held_out:
        yield "No dataset of this modality has held-out rows to measure it on."
        return
    yield ""
    rows = [["held-out rows of", "rows", "error", "cosine", "1st percentile", "unmigrated"]]
    for dataset, one in answer.held_out.items():
        cosines = (one.cosine_mean, one.cosine_percentile_1, one.cosine_unmigrated)
        rows.append(
            [dataset, f"{one.rows:,}", _decimal(one.error), *(f"{value:.4f}" for value in cosines)]
        )
    yield from aligned(rows)
    yield "Cosines are those of migrated (unmigrated) vectors with the re-encoded items."


def _merged(answer: MergedExports) -> Iterator[str]:
    yield f"{answer.model}@{answer.version} has learned the datasets of both; it is in {answer.folder}"
    yield ""
    rows = [["drift since its own export, of", "drift"]]
    rows += [[dataset, f"{drift:.3g}"] for dataset, drift in answer.drift.items()]
    yield from aligned(rows)
    yield ""
    yield "It has moments, so that it can be merged again. Share it only with people who may have the moments of every dataset."


def _decimal(value: float | None) -> str:
    if value is None or math.isnan(value):
        return _NOTHING
    return f"{value:.3g}"


def finite(value: Any) -> Any:
    """Replace numbers that are not finite by None, in nested mappings and sequences."""
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
