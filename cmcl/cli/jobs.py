"""`cmcl job`: show, follow, cancel, retry, approve."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from cmcl.cli.console import (
    Cell,
    Columns,
    Grid,
    fields,
    print_json,
    say,
    show,
    show_all,
    stdout,
    table,
)
from cmcl.cli.datasets import evaluation_cell
from cmcl.cli.errors import CommandError
from cmcl.cli.options import (
    DEFAULT_URL,
    AsJson,
    AttemptNumber,
    JobId,
    ListOrder,
    MostItems,
    OfAnyModel,
    PictureFile,
    Reason,
    Url,
    save_pictures,
)
from cmcl.cli.progress import (
    duration,
    figures,
    follow,
    preparation_figures,
)
from cmcl.client import (
    Approval,
    Attempt,
    Bound,
    Candidate,
    CandidateDataset,
    Client,
    CmclError,
    Job,
    JobPhase,
    PrepareProgress,
    Progress,
    VersionSummary,
)

app = typer.Typer(
    no_args_is_help=True,
    help="Jobs: each trains one dataset into a version. Show, follow, cancel, retry, approve.",
)

_NOT_FOUND = 404


def _made(job: Job) -> int | None:
    """Return the version of a published job. For a running job the API has the planned number."""
    return job.version if job.state == "published" else None


_COLUMNS: Columns[Job] = {
    "job": lambda job: job.id,
    "model": lambda job: job.model,
    "state": lambda job: job.state,
    "version": _made,
    "created": lambda job: job.created_at,
    "reason": lambda job: job.reason,
}


@app.command("list")
def list_jobs(
    model: OfAnyModel = None,
    state: Annotated[str | None, typer.Option(help="only jobs in this state, e.g. running")] = None,
    order: ListOrder = "asc",
    limit: MostItems = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List jobs, oldest first."""
    with Client(url) as client:
        found = client.jobs(model, state, order)
        show_all(found, as_json, _COLUMNS, _none(model, state), limit)


class _JobDetails(Job):
    """A job with its phases and attempts, and its candidate while there is one."""

    phases: list[JobPhase]
    attempts: list[Attempt]
    candidate: Candidate | None


@app.command("show")
def show_job(
    job: JobId, picture: PictureFile = None, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Show a job with its progress, where its time went, its attempts, and the candidate of one that is held or was rejected: what it would change."""
    with Client(url) as client:
        found = client.job(job)
        phases = client.phases(job).phases
        attempts = list(client.attempts(job))
        candidate = _candidate(client, found)
    parts = {"phases": phases, "attempts": attempts, "candidate": candidate}
    details = _JobDetails.model_validate({**dict(found), **parts})
    show(details, as_json, _details_view)
    if picture is not None:
        from cmcl.pictures import candidate_pictures

        if candidate is None:
            raise CommandError(f"job {job} is {found.state} and has no candidate to draw")
        heading = f"candidate for {candidate.model}@{candidate.version}"
        save_pictures(picture, heading, candidate_pictures(candidate))


def _candidate(client: Client, job: Job) -> Candidate | None:
    """Return the candidate of a job that is held or was rejected. Rejected ones are removed after some days."""
    if job.state not in {"held", "rejected"}:
        return None
    try:
        return client.candidate(job.id)
    except CmclError as error:
        if error.status == _NOT_FOUND:
            return None
        raise


@app.command("log")
def show_log(
    job: JobId, attempt: AttemptNumber = None, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Print the end of an attempt's log."""
    with Client(url) as client:
        found = client.log(job, attempt)
    if as_json:
        print_json(found)
    else:
        stdout().print(found.text, soft_wrap=True, highlight=False, markup=False)


@app.command("watch")
def watch_job(job: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Follow a job to its end. Exit code 3 if it ends without a version."""
    with Client(url) as client:
        follow(client, job, as_json)


@app.command("cancel")
def cancel_job(job: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Cancel a job."""
    with Client(url) as client:
        updated = client.cancel(job)
    say(f"{job}: {updated.state}, cancellation requested", updated, as_json)


@app.command("retry")
def retry_job(job: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Retry a failed or rejected job: prepare its dataset and train again, under the present gate."""
    with Client(url) as client:
        updated = client.retry(job)
    say(f"{job}: {updated.state}", updated, as_json)


@app.command("approve")
def approve_job(
    job: JobId, reason: Reason = "", url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Publish a candidate that is held for approval."""
    with Client(url) as client:
        updated = client.approve(job, reason)
    say(f"{job}: {updated.state}, approved", updated, as_json)


@app.command("reject")
def reject_job(
    job: JobId, reason: Reason = "", url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Reject a candidate that is held for approval."""
    with Client(url) as client:
        updated = client.reject(job, reason)
    say(f"{job}: {updated.state}", updated, as_json)


def _none(model: str | None, state: str | None) -> str:
    """Return the message for an empty list."""
    if state is None and model is None:
        return "no jobs yet; a dataset starts one: cmcl dataset add SHARDS --pair FIRST,SECOND"
    which = (f"of model {model}" if model else "", f"in state {state}" if state else "")
    return " ".join(("no jobs", *filter(None, which)))


def _progress_cells(job: Job) -> dict[str, Cell]:
    """Return the reported figures of the phase. Only what is in work has time left."""
    now: Progress | PrepareProgress | None = job.progress or job.preparation
    if job.state == "preparing":
        now = job.preparation
    if now is None:
        return {}
    in_work = job.state == ("running" if isinstance(now, Progress) else "preparing")
    left = now.eta_seconds if in_work else None
    time_left: dict[str, Cell] = {} if left is None else {"time left": duration(left)}
    found = figures(now) if isinstance(now, Progress) else preparation_figures(now)
    return {"phase": now.phase, **found, **time_left, "reported": now.at}


def _details_view(job: _JobDetails) -> RenderableType:
    attempts = [table(job.attempts, ATTEMPT_COLUMNS, "attempts")] if job.attempts else []
    candidate = [candidate_view(job.candidate)] if job.candidate else []
    return Group(_view(job), *attempts, *candidate)


def approval_cell(approval: Approval | None) -> str | None:
    """A user's decision about a candidate."""
    if approval is None:
        return None
    return f"{approval.decision} by {approval.actor}: {approval.reason or '-'}"


def _view(job: _JobDetails) -> RenderableType:
    return fields(
        {
            "job": job.id,
            "kind": job.kind,
            "model": job.model,
            "dataset": job.dataset,
            "state": f"{job.state} (dry run)" if job.dry_run else job.state,
            "reason": job.reason,
            "message": job.message,
            "warnings": "\n".join(job.warnings),
            "attempt": job.attempt,
            **_progress_cells(job),
            "parent version": job.parent_version,
            "version": _made(job),
            "recall": evaluation_cell(job.evaluation),
            "approval": approval_cell(job.approval),
            "created": job.created_at,
            "started": job.started_at,
            "finished": job.finished_at,
            "time": phases_line(job.phases) if job.phases else None,
        }
    )


_LEGEND = (
    "recall at 1 in %: when the dataset was learned, in the parent, in the candidate. "
    "drift: root mean square change of the dataset's scores since it was learned, relative to their size. "
    "loss (quality in the API): spectral contrastive loss; -1 as when the dataset was learned, lower is better, "
    "best is the lowest that heads of this width reach on it."
)


_MADE_OF = {"unlearn": "unlearned", "erase": "erased a row of", "merge": "merged"}


def made_of(made: Candidate | VersionSummary) -> dict[str, Cell]:
    """Return what a version learned, unlearned or merged; with the id of the dataset if it learned one."""
    name = made.dataset_name if made.dataset is None else f"{made.dataset_name} ({made.dataset})"
    return {_MADE_OF.get(made.kind, "dataset"): name}


ATTEMPT_COLUMNS: Columns[Attempt] = {
    "attempt": lambda attempt: attempt.attempt,
    "from version": lambda attempt: attempt.parent_version,
    "started": lambda attempt: attempt.started_at,
    "ended": lambda attempt: attempt.ended_at,
    "outcome": lambda attempt: attempt.outcome,
    "reason": lambda attempt: attempt.message or attempt.reason,
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
        *(Text(each.message, style="red") for each in candidate.bounds if each.message),
        _datasets(candidate),
        _capacity(candidate),
    )


def _bounds(bounds: list[Bound]) -> RenderableType:
    rows = [
        [
            f"{bound.name} ({bound.source})",
            "not set" if bound.permitted is None else bound.permitted,
            "not measured" if bound.found is None else bound.found,
            _verdict(bound),
        ]
        for bound in bounds
    ]
    return Grid(("bound", "permitted", "found", "met"), rows, "bounds of the gate")


def _verdict(bound: Bound) -> Text | None:
    if bound.met is None:
        return None
    return Text("yes", style="green") if bound.met else Text("no", style="red")


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


def _dataset_row(each: CandidateDataset) -> list[Cell]:
    recalls = (each.recall_learned, each.recall_before, each.recall_after)
    before, after = each.quality_before, each.quality_after
    return [
        f"{each.name} (new)" if each.is_new else each.name,
        each.version,
        *(None if recall is None else f"{100 * recall.at_1:.1f}" for recall in recalls),
        *(each.drift_before, each.drift_after),
        *(None if quality is None else quality.now for quality in (before, after)),
        after.best if after else None,
    ]


def _capacity(candidate: Candidate) -> RenderableType:
    """Free shares of the heads; nothing if heads were solved, which closes no entry."""
    rows = [
        [
            modality,
            None if change.before is None else f"{100 * change.before.free_share:.0f} %",
            f"{100 * change.after.free_share:.0f} %",
        ]
        for modality, change in candidate.capacity.items()
    ]
    return Grid(("modality", "free in the parent", "free in the candidate"), rows, "capacity")
