"""What a notebook shows of a version, a candidate and a job: facts, pictures, and their numbers."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from cmcl.contract.api.jobs import Candidate, Job, JobPhase
from cmcl.contract.api.versions import Version

# Pictures are imported when they are drawn: they are no part of the start-up of other programs.
if TYPE_CHECKING:
    from cmcl.pictures import Picture


def version_html(version: Version) -> str:
    """Return a version with its pictures."""
    from cmcl.pictures import version_pictures

    report = version.manifest.report
    facts = {
        "learned": version.dataset_name,
        "parent": version.parent,
        "job": version.job,
        "updates": f"{report.updates:,} on {report.ranks} ranks",
        "created": version.created_at,
        "retired": version.retired_at,
    }
    drawn = version_pictures(version)
    return _html(f"{version.model}@{version.version}", facts, drawn)


def candidate_html(candidate: Candidate) -> str:
    """Return a candidate beside its parent, with the bounds of the gate."""
    from cmcl.pictures import candidate_pictures

    facts: dict[str, object] = {
        "learned": candidate.dataset_name,
        "parent": candidate.parent,
        "job": candidate.job,
        "created": candidate.created_at,
    }
    for bound in candidate.bounds:
        if bound.permitted is not None:
            facts[bound.name] = f"{bound.found} (permitted: {bound.permitted})" + (
                "" if bound.met else f": {bound.message}"
            )
    title = f"candidate for {candidate.model}@{candidate.version}"
    return _html(title, facts, candidate_pictures(candidate))


def job_html(job: Job) -> str:
    """Return a job with its state, its progress, and how long it waited and trained."""
    from cmcl.pictures import duration

    now, preparation = job.progress, job.preparation
    facts: dict[str, object] = {
        "model": job.model,
        "kind": job.kind if job.kind != "learn" else None,
        "dataset": f"{job.dataset_name} ({job.dataset})" if job.dataset else job.dataset_name,
        "state": job.state,
        "reason": job.message or job.reason,
        "version": job.version if job.state == "published" else None,
        "attempt": job.attempt or None,
    }
    if preparation and not job.has_ended:
        facts["prepared rows"] = f"{preparation.rows_done:,} of {preparation.rows_total or '?':,}"
    if now:
        facts |= {
            "phase": now.phase,
            "updates": f"{now.updates_done:,} of {now.updates_total:,}"
            if now.updates_total
            else None,
            "loss": now.loss,
            "time left": None if now.eta_seconds is None else duration(now.eta_seconds),
        }
    return _html(f"job {job.id}", facts, [_phases(job)])


def _phases(job: Job) -> "Picture | None":
    """Return the time until the job started, and since; None before it started."""
    from cmcl.pictures import job_phases

    if job.started_at is None:
        return None
    last = job.finished_at or (job.progress.at if job.progress else None) or job.state_changed_at
    waited = (job.started_at - job.created_at).total_seconds()
    trained = (last - job.started_at).total_seconds()
    phases = [
        JobPhase(phase="until it started", seconds=waited),
        JobPhase(phase="since it started", seconds=trained, running=job.finished_at is None),
    ]
    return job_phases(phases)


def _html(title: str, facts: Mapping[str, object], drawn: "Iterable[Picture | None]") -> str:
    from cmcl.pictures import Table

    rows = [(name, _written(value)) for name, value in facts.items() if value is not None]
    figures = "".join(each.html(standalone=True) for each in drawn if each is not None)
    return Table(title, ("", ""), rows, names=2).html() + figures


def _written(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S %Z}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
