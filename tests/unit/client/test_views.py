"""What commands print: tables, pages and progress, with data that the fake trainer does not produce."""

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Console, RenderableType

from cmcl import Client
from cmcl.cli.console import Columns, as_text, fields, table
from cmcl.cli.datasets import dataset_view
from cmcl.cli.options import name_of
from cmcl.cli.progress import JobView, bar_fields, details, watch_with_bar
from cmcl.cli.versions import capacity, matrix, outcomes_of, recall_of_version, score_errors
from cmcl.client import Dataset, EvaluationRow, Event, Job, VersionSummary
from cmcl.contract.job import Progress
from cmcl.contract.prepare import PrepareProgress
from cmcl.contract.version import HeadCapacity, Recall
from tests.fakes.responses import body, response
from tests.unit.client.command_line import Cmcl
from tests.unit.client.rest_server import Asked, RestServer

AT = datetime(2026, 11, 24, tzinfo=UTC)
JOB = "job-0123456789ab"
PAIR = {"first": "image", "second": "text"}


def drawn(page: RenderableType, width: int = 100) -> str:
    console = Console(width=width, color_system=None, _environ={})
    with console.capture() as capture:
        console.print(page)
    return capture.get()


def cells(page: RenderableType) -> list[list[str]]:
    """The cells of a drawn table, without its headings."""
    lines = [line for line in drawn(page, 160).splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def recall(at_1: float, **more: float) -> Recall:
    return Recall(**{"rows": 10, "at_1": at_1, "at_5": at_1, "at_10": at_1, **more})


NAMES = {"a": "birds", "b": "[bold]bees"}


def test_a_matrix_names_what_each_version_did_and_the_change_of_each_dataset() -> None:
    """Also of what was unlearned since. With labels, a row of the same label counts as a hit at 1."""
    kinds = [("speech", "learn"), ("bees", "learn"), ("speech", "unlearn"), ("other@2", "merge")]
    outcomes = outcomes_of(
        response(VersionSummary, version=number, kind=kind, dataset_name=name, pair=PAIR)
        for number, (name, kind) in enumerate(kinds, start=1)
    )
    assert outcomes == {
        1: "speech (unlearned in 3)",
        2: "bees",
        3: "unlearned speech",
        4: "other@2",
    }
    rows = [
        EvaluationRow(version=1, learned="gone", recall={"a": recall(0.9, accuracy=0.8)}),
        EvaluationRow(version=2, learned="b", recall={"a": recall(0.7, accuracy=0.8)}),
        EvaluationRow(
            version=3,
            learned=None,
            recall={
                "a": recall(0.88, accuracy=0.8),
                "b": recall(0.5, at_10=0.7, own_at_1=0.5, own_at_10=0.7),
            },
        ),
    ]
    page = matrix(rows, NAMES, outcomes)
    assert cells(page) == [
        ["1", "speech (unlearned in 3)", "90.0 (+0.0)", ""],
        ["2", "[bold]bees", "70.0 (-20.0)", ""],
        ["3", "unlearned speech", "88.0 (-2.0)", "50.0 (+0.0)"],
    ]
    shown = drawn(page, 160)
    assert "birds (same label)" in shown
    assert "[bold]bees (own row)" in shown
    unmeasured = matrix([EvaluationRow(version=1, learned="a", recall={})], NAMES, {})
    assert "not measured" in drawn(unmeasured)


def test_a_version_has_recall_errors_of_scores_and_capacity() -> None:
    measured = {"a": recall(0.412, own_at_1=0.381, own_at_10=0.702), "b": recall(0.5)}
    assert cells(recall_of_version(3, measured, NAMES)) == [
        ["birds", "10", "41.2", "41.2", "38.1", "70.2"],
        ["[bold]bees", "10", "50.0", "50.0", "-", "-"],
    ]
    errors = score_errors({"a": {"bit": 0.0757, "64": 0.0125}}, NAMES)
    assert cells(errors) == [["birds", "0.076", "0.013"]]
    assert "as a type, or by their first numbers" in " ".join(drawn(errors, 160).split())
    assert drawn(score_errors({}, NAMES)) == "", "neither headings nor a legend"
    used = {"input_directions": 3, "input_width": 9, "output_directions": 2, "output_width": 8}
    head = HeadCapacity(free_share=0.25, **used)
    assert cells(capacity({"image": head})) == [
        ["image", f"{'█' * 5}{'░' * 15} 25 %", "3 of 9", "2 of 8"]
    ]


def test_a_dataset_has_its_report_encoders_and_the_rows_that_were_left_out() -> None:
    found = {"rows": 90, "width": 4, "familiarity": 0.2, "rank_one": False}
    found |= {"duplicate_rows": 0, "constant_columns": 0}
    clip = {"kind": "open-clip", "adapter": 1, "model": "B-32", "takes": "image", "width": 4}
    row = {
        "id": None,
        "file": "upload:up-1",
        "row": 7,
        "place": "b.tar, b-7.png",
        "reason": "[cut]",
    }
    report: dict[str, Any] = {
        "version": 1,
        "pair": ["image", "text"],
        "rows": 90,
        "evaluation_rows": 8,
    }
    report |= {"refusals": [], "findings": {"image": found}, "advice": ["[the same]"]}
    about = {"pair": PAIR, "encoders": {"image": clip, "text": "undeclared"}}
    shown = response(Dataset, report=report, rejected={"rows": 22, "first": [row]}, **about)
    text = drawn(dataset_view(shown))
    for words in (
        *("│ image    │ 90   │ 0.200", "90 rows to train on, 8 held out", "• [the same]"),
        *(
            "22 rows",
            "b.tar, b-7.png: [cut]",
            "... 21 more",
            "image open-clip B-32, text undeclared",
        ),
    ):
        assert words in text


class Named(BaseModel):
    """A row of a table."""

    name: str
    value: Any = None


COLUMNS: Columns[Named] = {
    "job": lambda item: item.name,
    "created": lambda _: AT,
    "reason": lambda item: item.value,
}


@pytest.mark.parametrize("width", [20, *range(36, 90, 6)])
def test_words_of_a_table_are_never_truncated(width: int) -> None:
    """Where the terminal is narrow, each row is a list of its values."""
    items = [Named(name=JOB, value=f"its file {'x' * 70} has too few rows")]
    text = drawn(table(items, COLUMNS), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert ("│" in text) is (width > 56)
    assert JOB in text.replace("\n", "").replace(" ", "")
    assert text.count("x") == 70, "prose folds, and is not cut either"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), ("", "-"), (0, "0"), (0.5, "0.500"), ("[red]x[/red]", "[red]x[/red]")],
)
def test_values_are_shown_without_markup(value: Any, text: str) -> None:
    assert as_text(value).plain == text
    assert text in drawn(fields({"it": value}))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/Birds of 2026.parquet", "birds-of-2026"),
        ("s3://bucket/path/pairs_000.parquet", "pairs-000"),
        ("file:///a/b.c.d", "b"),
        ("x" * 80, "x" * 48),
        ("x" * 47 + "-y", "x" * 47),
    ],
)
def test_a_dataset_without_a_name_is_named_after_its_files(source: str, name: str) -> None:
    assert name_of(source) == name


# --- Progress -------------------------------------------------------------------------------------

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
    *("updates 960 of 2,000", "rows/s 12,346", "loss 0.412", "gradient 1.23", "removed 38 %"),
    *("drift 0.0312", "ranks 4", "resumed at update 900"),
]


DECIDE = [f"see cmcl job show {JOB}", f"then cmcl job approve {JOB}", f"or cmcl job reject {JOB}"]


def job(state: str, progress: Progress | None = None, **more: Any) -> Job:
    return response(Job, id=JOB, state=state, progress=progress, **more)


PREPARING = job("preparing", preparation=ENCODING)
WAITING = response(PrepareProgress, phase="waiting", note="no CPU is free")
STARTING = response(Progress, phase="starting", note="the ranks are starting")


@pytest.mark.parametrize(
    ("shown", "bar", "below"),
    [
        (job("queued"), (None, 0, "queued", "", ""), []),
        (job("running", TRAINING), (2000, 960, "training", "48 %", "0:01:30 left"), WORDS),
        (
            job("running", READING),
            (4_000_000, 1_200_000, "moments", "30 %", ""),
            ["rows 1,200,000 of 4,000,000", "rows/s 183,224", "ranks 4"],
        ),
        # A finished job leaves one line.
        (job("published", TRAINING), (2000, 2000, "published", "100 %", ""), []),
        (job("published"), (1, 1, "published", "100 %", ""), []),
        (job("failed", TRAINING, message="no"), (2000, 960, "failed", "48 %", ""), []),
        (
            PREPARING,
            (12_000, 3_000, "encoding", "25 %", "0:01:13 left"),
            ["rows 3,000 of 12,000", "rows/s 123", "left out 7"],
        ),
        # A reason is shown once, also where the job's message repeats it.
        (
            job("preparing", preparation=WAITING, message="no CPU is free"),
            (None, 0, "waiting", "", ""),
            ["no CPU is free"],
        ),
        (job("running", STARTING), (None, 0, "starting", "", ""), ["the ranks are starting"]),
        (job("submitting", message="[red]"), (None, 0, "submitting", "", ""), ["[red]"]),
        # A person has to decide.
        (
            job("held", message="it drifts"),
            (None, 0, "held", "", ""),
            ["it drifts", *DECIDE],
        ),
        # Zero is a reported figure, unlike None.
        (
            job("running", response(Progress, phase="training", removed_share=0.0, drift=0.0)),
            (None, 0, "training", "", ""),
            ["removed 0 %", "drift 0"],
        ),
    ],
)
def test_a_bar_and_the_lines_below_it(shown: Job, bar: tuple[Any, ...], below: list[str]) -> None:
    names = ("total", "completed", "doing", "percent", "left")
    assert bar_fields(shown) == dict(zip(names, bar, strict=True))
    assert details(shown) == below
    view = JobView(JOB)
    view.show(shown)
    for width in (40, 80, 200):
        text = drawn(view, width)
        assert [each for each in below if each not in text] == [], "neither split nor truncated"
        assert max(map(len, text.splitlines())) <= min(width, 100)


def states_of(*states: Job) -> Any:
    """Answers of a service whose job advances with each request."""
    left = iter(states)

    def answer(asked: Asked) -> Any:
        if asked.path.endswith("/events"):
            moved = body(Event, id=1, kind="job.published", job=JOB)
            data = f"event: progress\ndata: {TRAINING.model_dump_json()}\n\n"
            moved_data = response(Event, **moved).model_dump_json()
            blocks = f"{data}id: 1\nevent: job.published\ndata: {moved_data}\n\n"
            return 200, blocks, {"Content-Type": "text/event-stream"}
        return 200, next(left).model_dump(mode="json")

    return answer


def test_a_watched_job_is_drawn_while_it_runs(client: Client, server: RestServer) -> None:
    server.answer = states_of(job("running"), job("published"))
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    assert watch_with_bar(client, JOB, JOB, console).state == "published"
    shown = screen.getvalue()
    assert all(each in shown for each in WORDS)
    assert shown.rindex("published") > shown.rindex(WORDS[-1])


def test_without_a_terminal_each_state_has_a_line(server: RestServer) -> None:
    server.answer = states_of(
        *(job("queued"), PREPARING, PREPARING, job("running", READING)),
        *(job("held", message="it drifts"), job("published", TRAINING)),
    )
    output = io.StringIO()
    with Client(server.url) as client:
        watch_with_bar(client, JOB, "fashion ", Console(file=output, width=1000))
    lines = output.getvalue().splitlines()
    assert lines[0] == "fashion: queued"
    assert "fashion: preparing, encoding (12,000 rows)" in lines
    assert lines[-6:] == ["fashion: held", "it drifts", *DECIDE, "fashion: published"]
    assert len(lines) == len(set(lines))


PHASES: dict[str, Any] = {
    "items": [],
    "next_cursor": None,
    "job": JOB,
    "seconds": 3.5,
    "phases": [
        {"phase": "queued", "seconds": 0.25},
        {"phase": "training", "seconds": 3.25, "running": True},
    ],
}


@pytest.mark.parametrize(
    ("shown", "rows"),
    [
        (job("running", TRAINING), [*WORDS, "phase training", "time left 0:01:30"]),
        (PREPARING, ["phase encoding", "rows 3,000 of 12,000", "time left 0:01:13"]),
        (job("prepared", preparation=ENCODING), ["phase encoding", "left out 7"]),
        (job("running"), []),
    ],
)
def test_a_jobs_page_shows_its_progress(
    server: RestServer, capsys: pytest.CaptureFixture[str], shown: Job, rows: list[str]
) -> None:
    server.always((200, {**shown.model_dump(mode="json"), **PHASES}))
    out = Cmcl(capsys)("job", "show", JOB, "--url", server.url)
    page = [" ".join(line.split()) for line in out.splitlines()]
    assert [row for row in rows if row not in page] == []
    assert any(line.startswith("phase") for line in page) is bool(rows), (
        "absent figures are not shown"
    )
    assert any("time left" in line for line in page) is any("time left" in row for row in rows)
    assert "time 3.5 s: queued 250 ms, training 3.2 s so far" in page
