"""A job, or a file on its way, as it goes on: bars for people, JSON lines for programs."""

import re
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

from cmcl.client import Client, CmclError
from cmcl.progress import watch_with_bar
from cmcl.terminal.console import print_json, stderr, stdout
from cmcl.terminal.exits import NoVersion
from cmcl.types import Job, UploadProgress

_UPLOAD = re.compile(r"upload:(up-[0-9a-f]{12})")

OnUpload = Callable[[UploadProgress], None]


def follow(client: Client, job: str, as_json: bool) -> Job:
    """To its end. Raises NoVersion unless it was published."""
    try:
        ended = client.watch(job, print_json) if as_json else _with_bar(client, job)
    except KeyboardInterrupt:
        stderr().print(f"job {job} goes on; cmcl job watch {job} follows it again")
        raise
    if ended.state != "published":
        why = with_file_names(client, ended.message or ended.reason or "-")
        raise NoVersion(f"job {job} ended as {ended.state}: {why}")
    if not as_json:
        stdout().print(f"published as version {ended.version}")
    return ended


def with_file_names(client: Client, message: str) -> str:
    """A message of the service in which each upload is named by its file as well."""
    for upload in set(_UPLOAD.findall(message)):
        try:
            name = client.upload_state(upload).filename
        except CmclError:
            # Removed since, or of another owner: the message stands as it is.
            continue
        message = message.replace(f"upload:{upload}", f"{name} (upload:{upload})")
    return message


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
