"""A job, or a file on its way, as it goes on: bars for people, JSON lines for programs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from cmcl.client import Client
from cmcl.progress import watch_with_bar
from cmcl.terminal.console import print_json, stderr, stdout
from cmcl.terminal.exits import NoVersion
from cmcl.types import Job, UploadProgress

OnUpload = Callable[[UploadProgress], None]


def follow(client: Client, job: str, as_json: bool) -> Job:
    """To its end. Raises NoVersion unless it was published."""
    try:
        ended = client.watch(job, print_json) if as_json else _with_bar(client, job)
    except KeyboardInterrupt:
        stderr().print(f"job {job} goes on; cmcl job watch {job} follows it again")
        raise
    if ended.state != "published":
        raise NoVersion(f"job {job} ended as {ended.state}: {ended.message or ended.reason or '-'}")
    if not as_json:
        stdout().print(f"published as version {ended.version}")
    return ended


def _with_bar(client: Client, job: str) -> Job:
    console = stderr()
    return watch_with_bar(client, job, job, console) if console.is_terminal else client.watch(job)


@contextmanager
def upload_bars() -> Iterator[OnUpload]:
    """A bar per file, on stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    bars: dict[str, TaskID] = {}
    shown = stderr()
    with Progress(
        *columns, console=shown, transient=True, disable=not shown.is_terminal
    ) as progress:

        def on_upload(now: UploadProgress) -> None:
            name = now.path.name
            if name not in bars:
                bars[name] = progress.add_task(name, total=now.total)
            progress.update(bars[name], completed=now.sent)

        yield on_upload
