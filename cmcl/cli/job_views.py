"""Views of the candidate of a job, of its attempts and their progress, for `cmcl job`."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from cmcl.cli.console import Cell, Columns, Grid, as_text, fields, table
from cmcl.client import (
    Attempt,
    Bound,
    Candidate,
    CandidateDataset,
    JobPhase,
    ProgressHistory,
    ProgressPoint,
    VersionSummary,
)

_LEGEND = (
    "recall at 1 in %: when the dataset was learned, in the parent, in the candidate. "
    "drift: root mean square change of the dataset's scores since it was learned, relative to their size. "
    "loss (quality in the API): spectral contrastive loss; -1 as when the dataset was learned, lower is better, "
    "best is the lowest that heads of this width reach on it."
)


_MADE_OF = {"unlearn": "unlearned", "merge": "merged"}


def made_of(made: Candidate | VersionSummary) -> dict[str, Cell]:
    """Return what a version learned, unlearned or merged; with the id of the dataset if it learned one."""
    name = made.dataset_name if made.dataset is None else f"{made.dataset_name} ({made.dataset})"
    return {_MADE_OF.get(made.kind, "dataset"): name}


# Of a curve on a terminal.
_MOST_LINES = 20

ATTEMPT_COLUMNS: Columns[Attempt] = {
    "attempt": lambda attempt: attempt.attempt,
    "from version": lambda attempt: attempt.parent_version,
    "started": lambda attempt: attempt.started_at,
    "ended": lambda attempt: attempt.ended_at,
    "outcome": lambda attempt: attempt.outcome,
    "reason": lambda attempt: attempt.message or attempt.reason,
}
_POINT_COLUMNS: Columns[ProgressPoint] = {
    "at": lambda point: point.at,
    "phase": lambda point: point.phase,
    "updates": lambda point: f"{point.updates_done:,} of {point.updates_total:,}",
    "rows/s": lambda point: (
        None if point.rows_per_second is None else f"{point.rows_per_second:,.0f}"
    ),
    "loss": lambda point: point.loss,
    "removed": lambda point: point.removed_share,
    "drift": lambda point: point.drift,
}


def phases_line(phases: Sequence[JobPhase]) -> str:
    """Render the phases of a job in one line: `4.9 s: queued 81 ms, preparing 0.3 s, ...`."""
    # Pictures are no part of the start-up of other commands.
    from cmcl.pictures import duration

    parts = [
        f"{each.phase} {duration(each.seconds)}{' so far' if each.running else ''}"
        for each in phases
    ]
    return f"{duration(sum(each.seconds for each in phases))}: {', '.join(parts)}"


def progress_view(progress: ProgressHistory) -> RenderableType:
    """Render at most twenty points of a curve, evenly spaced, with the first and the last one."""
    points = progress.points
    if not points:
        return Text(f"no progress of job {progress.job} is kept", style="dim")
    last = len(points) - 1
    lines = min(len(points), _MOST_LINES)
    shown = [points[round(line * last / max(1, lines - 1))] for line in range(lines)]
    return table(shown, _POINT_COLUMNS, f"attempt {progress.attempt} of {progress.job}")


def candidate_view(candidate: Candidate) -> RenderableType:
    """Render a candidate beside its parent: bounds, datasets and capacity."""
    facts = fields(
        {
            "candidate": f"version {candidate.version} of {candidate.model}",
            "parent": candidate.parent,
            **made_of(candidate),
            "attempt": candidate.attempt,
            "updates": f"{candidate.updates} on {candidate.ranks} ranks",
            "created": candidate.created_at,
        }
    )
    return Group(
        facts,
        _bounds(candidate.bounds),
        *_messages(candidate.bounds),
        _datasets(candidate),
        _capacity(candidate),
    )


def _bounds(bounds: list[Bound]) -> RenderableType:
    rows = [
        [
            Text(f"{bound.name} ({bound.source})"),
            as_text("not set" if bound.permitted is None else bound.permitted),
            as_text("not measured" if bound.found is None else bound.found),
            _verdict(bound),
        ]
        for bound in bounds
    ]
    return Grid(("bound", "permitted", "found", "met"), rows, "bounds of the gate")


def _verdict(bound: Bound) -> Text:
    if bound.met is None:
        return as_text(None)
    return Text("yes", style="green") if bound.met else Text("no", style="red")


def _messages(bounds: list[Bound]) -> list[RenderableType]:
    return [Text(bound.message, style="red") for bound in bounds if bound.message]


def _datasets(candidate: Candidate) -> RenderableType:
    headings = (
        *("dataset", "learned", "recall learned", "parent", "candidate"),
        *("drift parent", "drift candidate", "loss parent", "loss candidate", "best"),
    )
    rows = [_dataset_row(each) for each in candidate.datasets]
    reasons = [
        Text(f"{each.name} was not measured: {each.not_evaluated}", style="yellow")
        for each in candidate.datasets
        if each.not_evaluated
    ]
    return Group(Grid(headings, rows, "datasets"), *reasons, Text(_LEGEND, style="dim"))


def _dataset_row(each: CandidateDataset) -> list[Text]:
    recalls = (each.recall_learned, each.recall_before, each.recall_after)
    before, after = each.quality_before, each.quality_after
    return [
        Text(f"{each.name} (new)" if each.is_new else each.name),
        as_text(each.version),
        *(as_text(None if recall is None else f"{100 * recall.at_1:.1f}") for recall in recalls),
        *map(as_text, (each.drift_before, each.drift_after)),
        *(as_text(None if quality is None else quality.now) for quality in (before, after)),
        as_text(after.best if after else None),
    ]


def _capacity(candidate: Candidate) -> RenderableType:
    """Free shares of the heads; nothing if heads were solved, which closes no entry."""
    if not candidate.capacity:
        return Text("")
    rows = [
        [
            Text(modality),
            as_text(None if change.before is None else f"{100 * change.before.free_share:.0f} %"),
            Text(f"{100 * change.after.free_share:.0f} %"),
        ]
        for modality, change in candidate.capacity.items()
    ]
    return Grid(("modality", "free in the parent", "free in the candidate"), rows, "capacity")
