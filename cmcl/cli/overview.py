"""`cmcl overview`, `cmcl model summary` and `capacity`, `cmcl version history`: models at a glance and over their versions."""

from collections.abc import Mapping
from itertools import islice

from rich.console import Group, RenderableType
from rich.text import Text

from cmcl.cli.console import Cell, Columns, Grid, as_text, fields, show, show_all
from cmcl.cli.options import (
    DEFAULT_URL,
    AsJson,
    ListOrder,
    ModelName,
    MostItems,
    PictureFile,
    Url,
    save_pictures,
)
from cmcl.client import Client, ModelCapacity, ModelSummary, SummaryJob, VersionFigures

_CAPACITY = (
    "free: share of the head's entries that the next dataset may change. "
    "taken: part of what is free that each of the latest datasets took. "
    "datasets left: how many more of them leave {full:.0%} or more free, an order of magnitude."
)


def _free(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())


def _work(job: SummaryJob | None) -> str | None:
    return f"{job.state}: {job.dataset_name}" if job else None


_OVERVIEW: Columns[ModelSummary] = {
    "model": lambda model: model.name,
    "live": lambda model: model.live_version,
    "newest": lambda model: model.newest.version if model.newest else None,
    "waiting": lambda model: model.jobs.waiting,
    "running": lambda model: model.jobs.running,
    "held": lambda model: model.jobs.held,
    "in work": lambda model: _work(model.current),
    "ended last": lambda model: _work(model.last_ended),
    "drift": lambda model: model.newest.max_drift if model.newest else None,
    "recall": lambda model: model.newest.mean_recall if model.newest else None,
}
_FIGURES: Columns[VersionFigures] = {
    "version": lambda version: version.version,
    "dataset": lambda version: version.dataset_name,
    "pair": lambda version: str(version.pair),
    "created": lambda version: version.created_at,
    "drift": lambda version: version.max_drift,
    "recall": lambda version: version.mean_recall,
    "free": lambda version: _free(version.free_share),
}


def overview(
    order: ListOrder = "asc",
    limit: MostItems = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show all models at a glance: live version, jobs, drift and recall of the newest version."""
    with Client(url) as client:
        hint = "no models yet; create one: cmcl model create NAME --modality image=1280 --modality text=384"
        show_all(client.overview(order), as_json, _OVERVIEW, hint, limit)


def model_summary(model: ModelName, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show a model at a glance: live and newest version, jobs, drift, room."""
    with Client(url) as client:
        show(client.summary(model), as_json, _summary_view)


def model_capacity(
    model: ModelName, picture: PictureFile = None, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Show how full each head is, and a forecast of how many more datasets fit."""
    with Client(url) as client:
        found = client.capacity(model)
    show(found, as_json, capacity_view)
    if picture is not None:
        from cmcl.pictures import capacity_picture

        save_pictures(picture, f"capacity of {model}", [capacity_picture(found)])


def version_history(
    model: ModelName,
    order: ListOrder = "asc",
    limit: MostItems = None,
    picture: PictureFile = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List drift, recall and free shares of each version, oldest first. JSON has them for each dataset."""
    with Client(url) as client:
        hint = f"model {model!r} has no version yet; post a dataset to make one: cmcl dataset add"
        by_dataset = as_json or picture is not None
        found = list(islice(client.history(model, order, by_dataset=by_dataset), limit))
        show_all(found, as_json, _FIGURES, hint)
        if picture is not None:
            from cmcl.pictures import history_pictures

            bound = client.summary(model).drift_bound
            save_pictures(picture, f"versions of {model}", history_pictures(found, bound))


def _summary_view(model: ModelSummary) -> RenderableType:
    newest, jobs = model.newest, model.jobs
    values: dict[str, Cell] = {
        "model": model.name,
        "policy": model.policy or model.method,
        "live version": model.live_version,
        "newest version": f"{newest.version} ({newest.dataset_name})" if newest else None,
        "largest drift": newest.max_drift if newest else None,
        "permitted drift": model.drift_bound,
        "mean recall at 1": newest.mean_recall if newest else None,
        "free": _free(newest.free_share) if newest else None,
        "jobs": f"{jobs.waiting} waiting, {jobs.running} running, {jobs.held} held",
        "in work": _job_line(model.current),
        "ended last": _job_line(model.last_ended),
    }
    return fields(values)


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
