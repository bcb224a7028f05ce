"""What the launcher is asked to run: an attempt's command, and what finds it a place."""

import shlex

from cmcl.contract.job import submission_id
from service.control.context import Context
from service.database.rows import JobRecord, ModelRecord
from service.launchers.port import Submission
from service.settings import Settings


def attempt_submission(context: Context, job: JobRecord, model: ModelRecord) -> Submission:
    """The job's present attempt; its priority is that of the model's policy by now."""
    settings = context.settings
    about = {
        "job": job.id,
        "attempt": str(job.attempt),
        "model": job.model,
        "dataset": job.dataset,
        "owner": job.owner,
        "priority": model.policy.priority,
    }
    return Submission(
        id=submission_id(job.id, job.attempt),
        command=_command(context, job, model),
        labels=labels(settings, about),
        priority=model.policy.priority,
        ranks=settings.ranks,
        min_ranks=settings.fewest_ranks,
        gpus_per_rank=settings.gpus_per_rank,
    )


def labels(settings: Settings, about: dict[str, str]) -> dict[str, str]:
    """The site's own, and ours under a prefix of their own."""
    return {**settings.job_labels, **{f"cmcl/{name}": text for name, text in about.items()}}


def _command(context: Context, job: JobRecord, model: ModelRecord) -> list[str]:
    settings = context.settings
    return [
        *shlex.split(settings.worker_command),
        *("--store", context.store.uri, "--job", job.id, "--attempt", str(job.attempt)),
        *("--ranks", str(settings.ranks), "--gpus-per-rank", f"{settings.gpus_per_rank:g}"),
        *(("--min-ranks", str(settings.min_ranks)) if settings.min_ranks is not None else ()),
        *("--priority", model.policy.priority),
        *("--idle-seconds", f"{settings.ranks_idle_seconds:g}"),
        # A cluster of its own has no ranks of an earlier attempt, and no later one will come.
        *(("--cold",) if settings.launcher == "kuberay" else ()),
    ]
