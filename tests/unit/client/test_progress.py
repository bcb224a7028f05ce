"""Display of a job's progress: all reported figures, and no others."""

import io
from typing import Any

import pytest
from rich.console import Console

from cmcl import Client
from cmcl.cli import main
from cmcl.cli.errors import Exit
from cmcl.cli.progress import JobView, bar_fields, details, duration, figures, watch_with_bar
from cmcl.client import Event, Job
from cmcl.contract.job import Progress
from cmcl.contract.prepare import PrepareProgress
from tests.fakes.responses import response
from tests.unit.client.rest_server import Asked, RestServer

# As an older service reports it.
OLDER = response(Progress, phase="training", updates_done=3, updates_total=10, loss=0.12345)
READING = response(
    Progress,
    phase="moments",
    rows_done=1_200_000,
    rows_total=4_000_000,
    rows_per_second=183_224.2,
    ranks=4,
)
TRAINING = response(
    Progress,
    phase="training",
    updates_done=960,
    updates_total=2000,
    loss=0.4123,
    rows_per_second=12345.6,
    gradient_norm=1.2345,
    removed_share=0.375,
    drift=0.03123,
    eta_seconds=90.4,
    ranks=4,
    resumed_at=900,
)
ENCODING = response(
    PrepareProgress,
    phase="encoding",
    rows_done=3_000,
    rows_total=12_000,
    bad_rows=7,
    rows_per_second=123.4,
    eta_seconds=73.0,
)
WORDS = [
    "updates 960 of 2,000",
    "rows/s 12,346",
    "loss 0.412",
    "gradient 1.23",
    "removed 38 %",
    "drift 0.0312",
    "ranks 4",
    "resumed at update 900",
]


def job(state: str, progress: Progress | None = OLDER, message: str | None = None) -> Job:
    return response(Job, id="job-1", state=state, message=message, progress=progress)


def drawn(shown: Job, width: int) -> str:
    """Render as on a terminal of that width."""
    console = Console(file=io.StringIO(), width=width)
    view = JobView("job-1")
    view.show(shown)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_job_without_progress_has_an_indeterminate_bar() -> None:
    shown = bar_fields(job("queued", None))
    assert shown == {"total": None, "completed": 0, "doing": "queued", "percent": "", "left": ""}


def test_a_running_job_shows_how_far_its_phase_is() -> None:
    assert bar_fields(job("running", TRAINING)) == {
        "total": 2000,
        "completed": 960,
        "doing": "training",
        "percent": "48 %",
        "left": "0:01:30 left",
    }


def test_a_phase_without_updates_is_measured_in_rows() -> None:
    shown = bar_fields(job("running", READING))
    assert (shown["total"], shown["completed"], shown["percent"]) == (4_000_000, 1_200_000, "30 %")


@pytest.mark.parametrize("progress", [OLDER, response(Progress, phase="done"), None])
def test_a_published_job_has_a_full_bar_even_without_updates(
    progress: Progress | None,
) -> None:
    shown = bar_fields(job("published", progress))
    assert shown["completed"] == shown["total"] > 0
    assert (shown["doing"], shown["percent"], shown["left"]) == ("published", "100 %", "")


def test_a_failed_jobs_bar_keeps_its_position() -> None:
    shown = bar_fields(job("failed", TRAINING))
    assert (shown["completed"], shown["doing"], shown["left"]) == (960, "failed", "")


def test_all_reported_figures_are_below_the_bar() -> None:
    assert details(job("running", TRAINING)) == WORDS
    assert details(job("running", READING)) == [
        "rows 1,200,000 of 4,000,000",
        "rows/s 183,224",
        "ranks 4",
    ]


def test_figures_missing_from_an_older_service_are_omitted() -> None:
    assert details(job("running", OLDER)) == ["updates 3 of 10", "loss 0.123"]
    assert figures(response(Progress, phase="starting")) == {}


def preparing(now: PrepareProgress | None, message: str | None = None) -> Job:
    return job("preparing", None, message).model_copy(update={"preparation": now})


def test_a_dataset_in_preparation_shows_its_phase_and_rows() -> None:
    shown = bar_fields(preparing(ENCODING))
    assert (shown["total"], shown["completed"], shown["percent"]) == (12_000, 3_000, "25 %")
    assert (shown["doing"], shown["left"]) == ("encoding", "0:01:13 left")
    assert details(preparing(ENCODING)) == ["rows 3,000 of 12,000", "rows/s 123", "left out 7"]


def test_a_preparation_that_waits_shows_why_once() -> None:
    waiting = response(PrepareProgress, phase="waiting", note="no CPU is free")
    assert details(preparing(waiting, "no CPU is free")) == ["no CPU is free"]
    assert details(preparing(waiting)) == ["no CPU is free"]
    assert details(preparing(response(PrepareProgress, phase="planning"), "the driver starts")) == [
        "the driver starts"
    ]
    assert details(preparing(None, "no process prepares datasets")) == [
        "no process prepares datasets"
    ]


def test_an_attempt_that_waits_shows_why() -> None:
    starting = response(Progress, phase="starting", note="the training ranks are starting")
    assert details(job("running", starting)) == ["the training ranks are starting"]
    assert details(job("running", None, "it starts")) == ["it starts"]


def test_a_figure_of_zero_is_shown() -> None:
    """Zero is a reported figure, unlike None."""
    progress = response(Progress, phase="training", removed_share=0.0, drift=0.0, resumed_at=0)
    assert figures(progress) == {"removed": "0 %", "drift": "0", "resumed at update": "0"}


@pytest.mark.parametrize("state", ["queued", "submitting"])
def test_a_job_that_is_not_running_shows_its_message(state: str) -> None:
    assert details(job(state, None, "attempt 1 was lost")) == ["attempt 1 was lost"]
    assert details(job(state, TRAINING)) == []


def test_an_ended_job_has_no_lines_below_the_bar() -> None:
    """A finished job leaves one line."""
    assert details(job("failed", TRAINING, "the loss is not a number")) == []
    assert drawn(job("published", TRAINING), 100).count("\n") == 1


@pytest.mark.parametrize("width", [40, 80, 200])
def test_figures_are_neither_split_nor_truncated(width: int) -> None:
    shown = drawn(job("running", TRAINING), width)
    assert [each for each in WORDS if each not in shown] == []
    assert max(map(len, shown.splitlines())) <= min(width, 100)


def test_brackets_in_a_message_are_not_markup() -> None:
    assert "[red]" in drawn(job("queued", None, "the node [red] was lost"), 80)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.2, "0:00:00"), (90.4, "0:01:30"), (90_000, "1 day, 1:00:00")]
)
def test_a_time_is_shown_like_a_clock(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_watched_job_is_drawn_while_it_runs(client: Client, server: RestServer) -> None:
    data = TRAINING.model_dump_json()
    moved = response(Event, id=1, kind="job.published", job="job-1").model_dump_json()
    blocks = f"event: progress\ndata: {data}\n\nid: 1\nevent: job.published\ndata: {moved}\n\n"
    states = iter(["running", "published"])

    def answer(asked: Asked) -> Any:
        if asked.path.endswith("/events"):
            return 200, blocks, {"Content-Type": "text/event-stream"}
        return 200, job(next(states), None).model_dump(mode="json")

    server.answer = answer
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    assert watch_with_bar(client, "job-1", "job-1", console).state == "published"
    shown = screen.getvalue()
    assert all(each in shown for each in WORDS)
    assert shown.rindex("published") > shown.rindex(WORDS[-1])


def test_without_a_terminal_each_state_has_a_line(server: RestServer) -> None:
    states = [
        job("queued", None),
        job("preparing", None).model_copy(update={"preparation": ENCODING}),
        job("preparing", None).model_copy(update={"preparation": ENCODING}),
        job("running", READING),
        job("running", TRAINING),
        job("published", TRAINING),
    ]
    left = iter(states)

    def answer(asked: Asked) -> Any:
        if "events" in asked.path:
            return 200, "data: {}\n\n", {"Content-Type": "text/event-stream"}
        return 200, next(left).model_dump(mode="json")

    server.answer = answer
    output = io.StringIO()
    with Client(server.url) as client:
        watch_with_bar(client, "job-1", "fashion ", Console(file=output, width=1000))
    assert output.getvalue().splitlines() == [
        "fashion: queued",
        "fashion: preparing, encoding (12,000 rows)",
        "fashion: running, moments",
        "fashion: running, training",
        "fashion: published",
    ]


# What the server answers for phases and attempts, in the same document as the job.
PHASES_ALONE: dict[str, Any] = {
    "items": [],
    "next_cursor": None,
    "job": "job-0123456789ab",
    "seconds": 3.5,
    "phases": [
        {"phase": "queued", "seconds": 0.25},
        {"phase": "training", "seconds": 3.25, "running": True},
    ],
}


def test_a_jobs_page_shows_its_progress(
    server: RestServer, capsys: pytest.CaptureFixture[str]
) -> None:
    for progress, rows in ((TRAINING, [*WORDS, "phase training", "time left 0:01:30"]), (None, [])):
        server.always((200, {**job("running", progress).model_dump(mode="json"), **PHASES_ALONE}))
        assert main(["job", "show", "job-0123456789ab", "--url", server.url]) == Exit.OK
        page = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert [row for row in rows if row not in page] == []
        absent = [line for line in page if line.startswith("phase")]
        assert bool(absent) == bool(rows), "absent figures are not shown"
        assert "time 3.5 s: queued 250 ms, training 3.2 s so far" in page


@pytest.mark.parametrize(("state", "has_time_left"), [("preparing", True), ("prepared", False)])
def test_a_jobs_page_shows_its_preparation(
    server: RestServer, capsys: pytest.CaptureFixture[str], state: str, has_time_left: bool
) -> None:
    shown = job(state, None).model_copy(update={"preparation": ENCODING})
    server.always((200, {**shown.model_dump(mode="json"), **PHASES_ALONE}))
    assert main(["job", "show", "job-0123456789ab", "--url", server.url]) == Exit.OK
    page = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    rows = ["phase encoding", "rows 3,000 of 12,000", "rows/s 123", "left out 7"]
    assert [row for row in rows if row not in page] == []
    assert ("time left 0:01:13" in page) is has_time_left
