"""docs/events.md lists all kinds, and its programs run."""

import re
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest

from cmcl.contract.api.events import EventKind
from cmcl.contract.api.jobs import JobState
from cmcl.contract.job import Phase, Progress
from service.database.queries.events import SKIPPED
from service.events.feed import FINAL
from service.events.webhooks import WORTH_A_MESSAGE
from tests.architecture.documents import code_of
from tests.architecture.repository import ROOT
from tests.fakes.control_plane import ControlPlane
from tests.fakes.receiver import receiving
from tests.fakes.served_app import served
from tests.unit.service.webhooks.harness import WebhookHarness

DOCUMENT = (ROOT / "docs" / "events.md").read_text()


def _program(name: str) -> dict[str, Any]:
    """The names defined by the one program that defines that function."""
    (program,) = [code for code in code_of(DOCUMENT, "python") if f"def {name}(" in code]
    defined: dict[str, Any] = {}
    exec(program, defined)
    return defined


def test_the_table_has_every_kind() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.*) \| (yes)? ?\|$", DOCUMENT, re.MULTILINE)
    assert [kind for kind, *_ in rows] == list(EventKind)
    assert {kind for kind, _, is_default in rows if is_default} == set(WORTH_A_MESSAGE)


def test_every_field_of_progress_is_described_and_every_phase_named() -> None:
    table = DOCUMENT.partition("### Progress")[2].partition("###")[0]
    cells = re.findall(r"^\| (`[^|]*) \| (.*) \|$", table, re.MULTILINE)
    fields = [name for cell, _ in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(fields) == sorted(Progress.model_fields)
    (phases,) = [words for cell, words in cells if cell == "`phase`"]
    assert re.findall(r"`(\w+)`", phases) == list(get_args(Phase))


def test_every_state_of_a_job_has_a_kind() -> None:
    assert {f"job.{state}" for state in JobState} <= set(EventKind)
    assert set(EventKind) >= FINAL


def test_every_emitted_event_kind_is_known() -> None:
    """Also the part in front of one that is put together, such as job.<state>."""
    code = "".join(path.read_text() for path in (ROOT / "service").rglob("*.py"))
    subjects = "|".join({kind.partition(".")[0] for kind in EventKind})
    emitted = set(re.findall(rf"\"((?:{subjects})\.[a-z_]+)\"", code)) - {SKIPPED}
    # Templates of pages.
    emitted = {kind for kind in emitted if not kind.endswith(".html")}
    assert {"job.queued", "model.deleted"} <= emitted <= set(EventKind)
    begun = set(re.findall(r"f\"([a-z]+\.)\{[a-z.]*(?:target|kind|state)\}\"", code))
    assert {"job.", "version."} <= begun
    assert {kind.partition(".")[0] + "." for kind in EventKind} >= begun


def test_the_documented_listener_follows_a_job_to_its_end(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    follow = _program("follow")["follow"]
    with served(plane.app) as url:
        seen: list[str] = []
        thread = threading.Thread(target=lambda: seen.extend(follow(url, job, "none")))
        thread.start()
        plane.run_to_end(job)
        thread.join(30)
    assert (seen[0], seen[-1], len(seen)) == ("job.queued", "job.published", 7)


@pytest.mark.parametrize("fault", [None, "body", "secret", "time"])
def test_the_documented_receiver_takes_our_messages_and_no_others(
    tmp_path: Path, fault: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    program = _program("receive")
    with receiving() as receiver:
        plane = ControlPlane(tmp_path, webhook_prefixes=(f"http://127.0.0.1:{receiver.port}",))
        plane.create_model()
        plane.clock.now = datetime.now(UTC)
        if fault == "time":
            plane.clock.advance(-3600)
        harness = WebhookHarness(plane)
        secret = harness.make(receiver.url)["secret"]
        plane.post_dataset()
        harness.deliver()
        plane.close()
    (message,) = receiver.received
    body = message.body + b" " if fault == "body" else message.body
    secret = "whsec_bm90LW91ci1zZWNyZXQ=" if fault == "secret" else secret
    statuses = [program["receive"](secret, message.headers, body) for _ in range(2)]
    assert statuses == ([204, 204] if fault is None else [400, 400])
    assert capsys.readouterr().out.count("job.queued") == (fault is None), "handled once"
