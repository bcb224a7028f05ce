"""A job's progress as a bar in the terminal."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cmcl.client import Client
from cmcl.types import Job


def watch_with_bar(client: Client, job: str, title: str, console: Console) -> Job:
    """Follow a job to its end under a live bar; answers the ended job."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]:<34}"),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        line = progress.add_task(title, state="", total=None)
        return client.watch(job, lambda now: progress.update(line, **bar_fields(now)))


def bar_fields(job: Job) -> dict[str, Any]:
    """How the bar shows a job: fields of rich's `Progress.update`."""
    now = job.progress
    words = [job.state]
    if job.state == "running" and now:
        words.append(now.phase)
    if now and now.loss is not None:
        words.append(f"loss {now.loss:.3f}")
    total = (now.updates_total or None) if now else None
    done = now.updates_done if now else 0
    # The bar of an ended job is full, also where no update was seen in passing.
    completed = (total or 0) if job.state == "published" else done
    return {"total": total, "completed": completed, "state": " ".join(words)}
