"""`cmcl job`: show, follow, cancel, retry, approve."""

from typing import Annotated

import typer
from rich.console import Group, RenderableType

from cmcl.cli.console import (
    Cell,
    Columns,
    fields,
    print_json,
    say,
    show,
    show_all,
    stdout,
    table,
)
from cmcl.cli.dataset_views import evaluation_cell
from cmcl.cli.errors import CommandError
from cmcl.cli.job_views import ATTEMPT_COLUMNS, candidate_view, phases_line, progress_view
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
    Attempt,
    Candidate,
    Client,
    CmclError,
    Job,
    JobPhase,
    PrepareProgress,
    Progress,
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


@app.command("progress")
def show_progress(
    job: JobId,
    attempt: AttemptNumber = None,
    picture: PictureFile = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show the progress of an attempt over time; JSON has all points."""
    with Client(url) as client:
        found = client.progress(job, attempt)
    show(found, as_json, progress_view)
    if picture is not None:
        from cmcl.pictures import progress_picture

        save_pictures(picture, f"job {job}", [progress_picture([found])])


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


def _view(job: _JobDetails) -> RenderableType:
    approval = job.approval
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
            "approval": f"{approval.decision} by {approval.actor}: {approval.reason or '-'}"
            if approval
            else None,
            "created": job.created_at,
            "started": job.started_at,
            "finished": job.finished_at,
            "time": phases_line(job.phases) if job.phases else None,
        }
    )
