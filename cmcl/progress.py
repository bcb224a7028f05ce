"""A job's progress as a bar in the terminal."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cmcl.client import Client, Json


def watch_with_bar(client: Client, job: str, title: str, console: Console) -> Json:
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


def bar_fields(job: Json) -> Json:
    """How the bar shows a job: fields of rich's `Progress.update`."""
    now = job.get("progress") or {}
    words = [job["state"]]
    if job["state"] == "running" and now.get("phase"):
        words.append(now["phase"])
    if now.get("loss") is not None:
        words.append(f"loss {now['loss']:.3f}")
    total = now.get("updates_total") or None
    # The bar of an ended job is full, also where no update was seen in passing.
    done = (total or 0) if job["state"] == "published" else now.get("updates_done", 0)
    return {"total": total, "completed": done, "state": " ".join(words)}
