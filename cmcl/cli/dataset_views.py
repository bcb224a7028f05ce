"""Views of a dataset and of the report of a dry run, for `cmcl dataset`."""

from rich.console import Group, RenderableType
from rich.text import Text

from cmcl.cli.console import Grid, as_text, fields
from cmcl.client import Dataset, DatasetSummary
from cmcl.contract.api.jobs import Encoders, RejectedSummary
from cmcl.contract.dataset import ShardRef
from cmcl.contract.prepare import DatasetReport
from cmcl.contract.version import EvaluationResult

_LEGEND = (
    "free: share of the head's entries that may change, now and after this dataset. "
    "learnable share: share of the dataset's energy on these entries. "
    "familiarity: share of the features in the directions of earlier ones, beyond chance: 1 is all, "
    "0 is chance, as with features of another encoder."
)


def state(dataset: DatasetSummary) -> str:
    if dataset.quarantine_reason:
        return f"quarantined: {dataset.quarantine_reason}"
    if dataset.dry_run:
        return "dry run"
    sealed = "sealed" if dataset.sealed_at else "open"
    return f"{sealed}, measured only" if dataset.evaluate_only else sealed


def dataset_view(dataset: Dataset) -> RenderableType:
    """All fields, and the report of a dry run."""
    report = [Text(), report_view(dataset)] if dataset.report else []
    page = fields(
        {
            "dataset": dataset.id,
            "name": dataset.name,
            "model": dataset.model,
            "pair": str(dataset.pair),
            "rows": dataset.rows,
            "held-out rows": dataset.evaluation_rows,
            "recall": evaluation_cell(dataset.evaluation),
            "left out": rejected_cell(dataset.rejected),
            "warnings": "\n".join(dataset.warnings),
            "encoders": encoders_cell(dataset.encoders),
            "job": dataset.job,
            "state": state(dataset),
            "shards": "\n".join(map(_shard, dataset.shards)),
            "held out": "\n".join(map(_shard, dataset.evaluation_shards)),
            "held-out share": dataset.evaluation_share,
            "created": dataset.created_at,
            "sealed": dataset.sealed_at,
        }
    )
    return Group(page, *report)


def _shard(shard: ShardRef) -> str:
    return shard.uri if shard.name is None else f"{shard.name} ({shard.uri})"


def rejected_cell(rejected: RejectedSummary | None) -> str | None:
    """Number of the rows that were left out, and the first ones with their reasons."""
    if rejected is None:
        return None
    first = [f"{row.place}: {row.reason}" for row in rejected.first]
    more = rejected.rows - len(first)
    lines = [f"{rejected.rows} rows", *first, *([f"... {more} more"] if more else [])]
    return "\n".join(lines)


def evaluation_cell(found: EvaluationResult | None) -> str | None:
    """Recall of a dataset that is measured only, and the version that was measured."""
    if found is None:
        return None
    lines = [found.note] if found.note else []
    if (recall := found.recall) is not None:
        measured = (
            f"at 1: {100 * recall.at_1:.1f} % ({recall.counts}), at 10: {100 * recall.at_10:.1f} %"
        )
        if recall.own_at_1 is not None and recall.own_at_10 is not None:
            own = f"{100 * recall.own_at_1:.1f} %, at 10: {100 * recall.own_at_10:.1f} %"
            lines.insert(0, f"own row at 1: {own}")
        lines.insert(0, f"{measured} of {recall.rows} rows, in version {found.version}")
    return "\n".join(lines)


def encoders_cell(encoders: Encoders | None) -> str | None:
    """The encoder of each modality."""
    if encoders is None:
        return None
    return ", ".join(
        f"{modality} {found}"
        if isinstance(found, str)
        else f"{modality} {found.kind} {found.model or ''}".rstrip()
        for modality, found in encoders.items()
    )


def report_view(checked: Dataset) -> RenderableType:
    """The report of a dry run."""
    report = checked.report
    if report is None:
        return Text(checked.quarantine_reason or "no report")
    left_out = rejected_cell(checked.rejected)
    held_out = f", {report.evaluation_rows} held out" if report.evaluation_rows else ""
    rows = "usable rows" if report.refusals else "rows to train on"
    lines = [
        Text(f"{report.rows} {rows}{held_out}"),
        *([Text(f"left out: {left_out}")] if left_out else []),
        *(Text(f"• {sentence}") for sentence in report.advice),
    ]
    return Group(_heads(report), Text(_LEGEND, style="dim"), *lines)


def _heads(report: DatasetReport) -> Grid:
    rows = []
    for modality in report.pair:
        found, head = report.findings.get(modality), report.heads.get(modality)
        moments = head.moments if head else None
        values = (
            found.rows if found else None,
            moments.free_share if moments else None,
            moments.free_share_after if moments else None,
            moments.learnable_share if moments else None,
            moments.familiarity if moments else None,
        )
        rows.append([Text(modality), *map(as_text, values)])
    headings = (
        "modality",
        "rows",
        "free now",
        "free after",
        "learnable share",
        "familiarity",
    )
    return Grid(headings, rows)
