"""Views of a model, of all models and of the capacity of heads, for `cmcl model`."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from cmcl.cli.console import Cell, Columns, Grid, as_text, fields
from cmcl.client import Model, ModelCapacity, ModelSummary, SummaryJob

_CAPACITY = (
    "free: share of the head's entries that the next dataset may change. "
    "taken: part of what is free that each of the latest datasets took. "
    "datasets left: how many more of them leave {full:.0%} or more free, an order of magnitude."
)


class ModelDetails(Model, ModelSummary):
    """The specification of a model and its state: newest version, drift, jobs."""


def free_shares(shares: Mapping[str, float]) -> str:
    """Format the free share of each head."""
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())


def _jobs(model: ModelSummary) -> str | None:
    counts = {"waiting": model.jobs.waiting, "running": model.jobs.running, "held": model.jobs.held}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or None


def _work(job: SummaryJob | None) -> str | None:
    return f"{job.state}: {job.dataset_name}" if job else None


SUMMARY_COLUMNS: Columns[ModelSummary] = {
    "model": lambda model: model.name,
    "policy": lambda model: model.policy or model.method,
    "live": lambda model: model.live_version,
    "newest": lambda model: model.newest.version if model.newest else None,
    "drift": lambda model: model.newest.max_drift if model.newest else None,
    "recall": lambda model: model.newest.mean_recall if model.newest else None,
    "jobs": _jobs,
    "in work": lambda model: _work(model.current),
    "ended last": lambda model: _work(model.last_ended),
}


def specification_view(model: Model) -> RenderableType:
    """Render the specification of a model."""
    return fields(_specification(model))


def details_view(model: ModelDetails) -> RenderableType:
    """Render the specification and the state of a model."""
    newest = model.newest
    return fields(
        {
            **_specification(model),
            "newest version": f"{newest.version} ({newest.dataset_name})" if newest else None,
            "largest drift": newest.max_drift if newest else None,
            "permitted drift": model.drift_bound,
            "mean recall at 1": newest.mean_recall if newest else None,
            "free": free_shares(newest.free_share) if newest else None,
            "jobs": _jobs(model),
            "in work": _job_line(model.current),
            "ended last": _job_line(model.last_ended),
        }
    )


def _specification(model: Model) -> dict[str, Cell]:
    origin = model.branched_from
    modalities = (
        f"{name} {each.width}" + (f" ({each.encoder})" if each.encoder else "")
        for name, each in model.modalities.items()
    )
    return {
        "model": model.name,
        "owner": model.owner,
        "newest version": model.head_version,
        "live version": model.live_version,
        "branched from": f"{origin.model}@{origin.version}" if origin else None,
        "width": model.width,
        "modalities": ", ".join(modalities),
        "policy": model.policy,
        "method": model.method,
        "permitted drift": model.max_drift,
        "training": _settings(dict(model.training)),
        "seed": model.seed,
        "created": model.created_at,
    }


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _job_line(job: SummaryJob | None) -> str | None:
    if job is None:
        return None
    message = f": {job.message}" if job.message else ""
    return f"{job.job} ({job.dataset_name}) {job.state}{message}"


def capacity_view(capacity: ModelCapacity) -> RenderableType:
    """Render the free share of each head over its versions, and the forecast."""
    rows = []
    for modality, head in capacity.modalities.items():
        before = head.history[:-1][-3:]
        taken = head.taken_per_dataset
        rows.append(
            [
                Text(modality),
                as_text(", ".join(f"{100 * each.free_share:.0f} %" for each in before)),
                Text(f"{100 * head.now.free_share:.0f} %"),
                as_text(None if taken is None else f"{100 * taken:.0f} %"),
                as_text(head.datasets_left),
            ]
        )
    headings = ("modality", "free before", "free now", "taken", "datasets left")
    title = f"{capacity.model}@{capacity.version}" if capacity.version else capacity.model
    table = Grid(headings, rows, title) if rows else Text(f"{title}: no capacity is measured")
    remark = [Text(capacity.remark, style="yellow")] if capacity.remark else []
    legend = Text(_CAPACITY.format(full=capacity.full_below), style="dim")
    return Group(table, *remark, *([legend] if rows else []))
