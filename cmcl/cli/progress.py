"""Progress of jobs and uploads, as bars or JSON lines."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.filesize import decimal
from rich.live import Live
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from cmcl.cli.console import print_json, stderr, stdout
from cmcl.cli.errors import NoVersion
from cmcl.client import Client, Job, PrepareProgress, Progress, UploadProgress
from cmcl.client.wire import without_none

OnUpload = Callable[[UploadProgress], None]

# Limits the bar on wide terminals.
_WIDEST = 100
# Length of the longest phase or state of a running job.
_PHASE_WIDTH = 10
_SUCCEEDED = ("published", "reported", "evaluated")
_DECIDE = ("see cmcl job show", "then cmcl job approve", "or cmcl job reject")


def watch_with_bar(client: Client, job: str, title: str, console: Console) -> Job:
    """Follow a job to its end with a live view, and return the ended job. Without a terminal, print each state."""
    if not console.is_terminal:
        return client.watch(job, StateLines(title, console), timeout=inf)
    view = JobView(title)
    with Live(view, console=console) as live:

        def on_change(now: Job) -> None:
            view.show(now)
            live.refresh()

        return client.watch(job, on_change, timeout=inf)


class StateLines:
    """Prints a line for each state and phase of a job, for output that is not a terminal."""

    def __init__(self, title: str, console: Console) -> None:
        self._title, self._console = title, console
        self._printed = ""

    def __call__(self, job: Job) -> None:
        now = _current(job)
        line = f"{self._title.strip()}: {job.state}"
        if now is not None:
            line += f", {now.phase}"
        if line != self._printed:
            self._printed = line
            rows = _count(job)[1]
            about = f" ({rows:,} rows)" if isinstance(now, PrepareProgress) and rows else ""
            lines = [f"{line}{about}", *(details(job) if job.state == "held" else ())]
            self._console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


class JobView:
    """A bar, and a line with the figures of a running job. Missing figures are omitted."""

    def __init__(self, title: str) -> None:
        self._bar = Bar(
            TextColumn("{task.description}"),
            TextColumn(f"{{task.fields[doing]:<{_PHASE_WIDTH}}}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[percent]:>5}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", style="dim"),
            expand=True,
        )
        self._line = self._bar.add_task(title, total=None, doing="", percent="", left="")
        self._lines: list[Text] = []

    def show(self, job: Job) -> None:
        """Update the view."""
        self._bar.update(self._line, **bar_fields(job))
        self._lines = [Text(each, style="dim") for each in details(job)]

    def __rich__(self) -> RenderableType:
        lines: list[RenderableType] = [self._bar]
        if self._lines:
            # Wraps between figures, not inside them.
            lines.append(Padding(Columns(self._lines, padding=(0, 3)), (0, 0, 0, 2)))
        return Constrain(Group(*lines), _WIDEST)


def bar_fields(job: Job) -> dict[str, Any]:
    """Return the fields of rich's `Progress.update` for a job."""
    now = _current(job)
    left = now.eta_seconds if now else None
    done, total = _count(job)
    if job.has_ended:
        # Full for a published job, even if no update was seen; else the last position.
        total = total or 1
        done = total if job.state in _SUCCEEDED else done
    return {
        # Without a total the bar is indeterminate.
        "total": total or None,
        "completed": done,
        "doing": now.phase if now else job.state,
        "percent": _percent(done / total) if total else "",
        "left": f"{duration(left)} left" if left is not None else "",
    }


def details(job: Job) -> list[str]:
    """Return the lines below the bar: figures, and what the job waits for."""
    if job.has_ended:
        return []
    now = _current(job)
    # A note becomes the job's message, when the job is read again.
    message = (now.note if now else None) or job.message
    if isinstance(now, PrepareProgress):
        found = preparation_figures(now)
    else:
        found = figures(now) if now else {}
    decide = _DECIDE if job.state == "held" else ()
    return [
        *(f"{name} {value}" for name, value in found.items()),
        *([message] if message else []),
        *(f"{command} {job.id}" for command in decide),
    ]


def _current(job: Job) -> Progress | PrepareProgress | None:
    """The progress report of the state that the job is in, if it has one."""
    return {"preparing": job.preparation, "running": job.progress}.get(job.state)


def preparation_figures(now: PrepareProgress) -> dict[str, str]:
    """Return the reported figures of a preparation, formatted."""
    rate = now.rows_per_second
    values = {
        "rows": _of((now.rows_done, now.rows_total)) if now.rows_total else None,
        "rows/s": None if rate is None else f"{rate:,.0f}",
        "left out": f"{now.bad_rows:,}" if now.bad_rows else None,
    }
    return without_none(**values)


def figures(progress: Progress) -> dict[str, str]:
    """Return the reported figures of the current phase, formatted."""
    values = ((figure, figure.read(progress)) for figure in _FIGURES)
    return {figure.name: figure.format(value) for figure, value in values if value is not None}


def duration(seconds: float) -> str:
    """Format seconds as H:MM:SS."""
    return str(timedelta(seconds=round(seconds)))


@dataclass(frozen=True)
class _Figure:
    """A figure of the progress. `read` returns None if the phase does not have it."""

    name: str
    read: Callable[[Progress], Any]
    format: Callable[[Any], str]


def _count(job: Job) -> tuple[int, int]:
    """Return done and total: of updates if there are any, else of rows."""
    progress = job.preparation if job.state in ("preparing", "reported") else job.progress
    if progress is None:
        return 0, 0
    if isinstance(progress, Progress) and progress.updates_total:
        return progress.updates_done, progress.updates_total
    return progress.rows_done, progress.rows_total


def _part(done: int, total: int) -> tuple[int, int] | None:
    return (done, total) if total else None


def _of(part: tuple[int, int]) -> str:
    return f"{part[0]:,} of {part[1]:,}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


_FIGURES = (
    _Figure("updates", lambda now: _part(now.updates_done, now.updates_total), _of),
    _Figure("rows", lambda now: _part(now.rows_done, now.rows_total), _of),
    _Figure("rows/s", lambda now: now.rows_per_second, "{:,.0f}".format),
    _Figure("loss", lambda now: now.loss, "{:.3f}".format),
    _Figure("gradient", lambda now: now.gradient_norm, "{:.3g}".format),
    _Figure("removed", lambda now: now.removed_share, _percent),
    _Figure("drift", lambda now: now.drift, "{:.3g}".format),
    _Figure("ranks", lambda now: now.ranks, "{:d}".format),
    _Figure("resumed at update", lambda now: now.resumed_at, "{:,d}".format),
)


def follow(client: Client, job: str, as_json: bool) -> Job:
    """Follow a job to its end. Raises NoVersion unless it was published, reported as a dry run, or measured."""
    try:
        ended = (
            client.watch(job, print_json, timeout=inf)
            if as_json
            else watch_with_bar(client, job, job, stderr())
        )
    except KeyboardInterrupt:
        stderr().print(f"job {job} continues; follow it again with: cmcl job watch {job}")
        raise
    if ended.state not in _SUCCEEDED:
        raise NoVersion(f"job {job} ended as {ended.state}: {ended.message or ended.reason or '-'}")
    if not as_json:
        is_version = ended.state == "published"
        seen = f"{ended.state}; see: cmcl dataset show {ended.dataset}"
        stdout().print(f"published as version {ended.version}" if is_version else seen)
        for warning in ended.warnings:
            stderr().print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
    return ended


@contextmanager
def upload_bars() -> Iterator[OnUpload]:
    """Show a progress bar per file on stderr; without a terminal, print a line when a file is sent or packed."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    bars: dict[str, TaskID] = {}
    shown = stderr()
    with Bar(*columns, console=shown, transient=True, disable=not shown.is_terminal) as progress:

        def on_upload(now: UploadProgress) -> None:
            name = f"{now.path.name} packed" if now.phase == "packing" else now.path.name
            if not shown.is_terminal:
                if now.sent == now.total:
                    line = (
                        f"{name}{'' if now.phase == 'packing' else ' sent'}: {decimal(now.total)}"
                    )
                    shown.print(line, highlight=False, markup=False, soft_wrap=True)
                return
            if name not in bars:
                bars[name] = progress.add_task(name, total=now.total)
            progress.update(bars[name], completed=now.sent)

        yield on_upload
