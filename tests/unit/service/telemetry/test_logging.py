"""Lines of the log: one object each for any request, with ids and without secrets."""

import ast
import json
import logging
import re
import time
from pathlib import Path

import pytest

from cmcl.contract.api.jobs import JobState
from service.core.settings import Settings
from service.telemetry.logs import FIELDS, JsonLines, secret_texts
from tests.fakes.control_plane import ControlPlane
from tests.unit.service.telemetry.written import written_lines

SERVICE = Path(__file__).parents[4] / "service"
# Line ends of several kinds, a terminal's escape sequences, a forged line, half a surrogate pair.
NASTY = 'x\n{"level": "error"}\r\u2028\u0085\x1b[31mred\x07\x00\ud800'
KEY = "cmcl_0123456789ab_" + "S" * 43


def line(message: str, secrets: tuple[str, ...] = (), **fields: object) -> str:
    record = logging.LogRecord("service.x", logging.INFO, "", 1, message, (), None)
    vars(record).update(fields)
    return JsonLines(secrets).format(record)


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [json.loads(JsonLines().format(record)) for record in caplog.records]


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Every line that the service logs."""
    caplog.set_level(logging.INFO, logger="service")
    return caplog


def test_nothing_breaks_a_line_or_colours_a_terminal() -> None:
    text = line(NASTY, model=NASTY, path=NASTY)
    assert re.fullmatch(r"[\x20-\x7e]+", text)
    assert json.loads(text)["model"] == NASTY


def test_a_traceback_stays_in_its_line() -> None:
    record = logging.LogRecord("service", logging.ERROR, "", 1, "x", (), None)
    record.exc_info = (ValueError, ValueError(NASTY), None)
    text = JsonLines().format(record)
    assert re.fullmatch(r"[\x20-\x7e]+", text)
    assert "ValueError" in json.loads(text)["traceback"]


def test_names_and_headers_of_requests_forge_no_line(
    plane: ControlPlane, heard: pytest.LogCaptureFixture
) -> None:
    headers = {"X-Request-ID": "a\x1b[31m", "User-Agent": 'x" {"level":"error"}'}
    plane.client.get('/v1/models/a%0A%7B"level":"error"%7D%1B%5B31m', headers=headers)
    plane.client.post("/v1/models", json={"name": "a\n{}"}, headers=headers)
    written = [JsonLines().format(record) for record in heard.records]
    assert len(written) == 2
    assert all(re.fullmatch(r"[\x20-\x7e]+", text) for text in written)
    assert {json.loads(text)["level"] for text in written} == {"info"}


def test_an_endless_path_is_cut(plane: ControlPlane, heard: pytest.LogCaptureFixture) -> None:
    plane.client.get(f"/v1/models/{'a' * 5000}")
    assert len(str(lines(heard)[-1]["path"])) < 600


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"Authorization: Bearer {KEY}", "S" * 43),
        (f"GET /v1/keys/{KEY}", "S" * 43),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        ("token eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl", "c2lnbmF0dXJl"),
        ("GET /x?token=%20eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl", "c2lnbmF0dXJl"),
        ("Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA"),
        ("postgresql://cmcl:hunter22@db/cmcl refused", "hunter22"),
        ("https://s3/x?X-Amz-Signature=abc123&X-Amz-Date=1", "abc123"),
        ("https://s3/x?X-Amz-Credential=AKIA%2F2026&y", "AKIA%2F2026"),
        ("connection failed: password='hunter22'", "hunter22"),
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI", "wJalrXUtnFEMI"),
        ("the operator's own words are here", "the operator's own words"),
    ],
)
def test_a_secret_is_hidden_in_every_field(text: str, secret: str) -> None:
    own = ("the operator's own words",)
    assert secret in text
    for written in (line(text, own), line("x", own, path=text), line("x", own, reason={"a": text})):
        assert secret not in written
        assert "[hidden]" in json.dumps(json.loads(written))


@pytest.mark.parametrize("text", ["eyJ" * 30_000, "://a:" * 20_000, "password" * 20_000])
def test_an_endless_line_takes_no_endless_time(text: str) -> None:
    began = time.process_time()
    line(text)
    assert time.process_time() - began < 2


def test_the_secrets_of_the_settings_are_known() -> None:
    key = "k" * 32
    settings = Settings(database_url="postgresql://a:p%40ssword@db/x", admin_key=key)
    assert secret_texts(settings) == ["p@ssword", key]
    assert secret_texts(Settings(database_url="postgresql://a:cmcl@db/x")) == []


def test_each_move_is_logged_once_with_its_ids(
    plane: ControlPlane, heard: pytest.LogCaptureFixture
) -> None:
    job = plane.post_dataset()
    plane.run_to_end(job)
    moves = [entry for entry in lines(heard) if str(entry["message"]).startswith("job.")]
    states = [str(entry["message"]).partition(":")[0].removeprefix("job.") for entry in moves]
    assert states == [
        "queued",
        "preparing",
        "prepared",
        "submitting",
        "running",
        "gating",
        "published",
    ]
    dataset = plane.dataset_of(job).id
    for entry in moves:
        assert (entry["job"], entry["dataset"], entry["model"]) == (job, dataset, "scenes")
        assert entry["level"] == "info"
    assert moves[3]["attempt"] == 1
    entries = [entry for entry in lines(heard) if str(entry["message"]).startswith("version.")]
    assert [entry["version"] for entry in entries] == [1]


def test_the_line_of_a_failed_job_has_the_message_that_the_api_has(
    plane: ControlPlane, heard: pytest.LogCaptureFixture
) -> None:
    plane.shards.mkdir(exist_ok=True)
    (plane.shards / "broken.parquet").write_bytes(b"no Parquet")
    shard = {"uri": (plane.shards / "broken.parquet").resolve().as_uri()}
    job = plane.post_dataset(shards=[shard])
    message = plane.run_to_end(job).message
    assert message
    (line,) = [entry for entry in lines(heard) if str(entry["message"]).startswith("job.failed")]
    assert message in str(line["message"])
    assert line["reason"] == "invalid_dataset"


def test_a_users_move_names_the_request_and_its_author(
    plane: ControlPlane, heard: pytest.LogCaptureFixture
) -> None:
    job = plane.post_dataset()
    with written_lines() as written:
        plane.client.post(f"/v1/jobs/{job}/cancel", headers={"X-Request-ID": "abc-7"})
    assert plane.job(job).state == JobState.CANCELLED
    assert len(written) == 2
    for entry in written:
        assert (entry["request_id"], entry["principal"]) == ("abc-7", "local")


def test_a_line_names_the_principal_and_never_its_key(tmp_path: Path) -> None:
    key = "operators-own-key-" + "x" * 20
    plane = ControlPlane(tmp_path, auth="on", admin_key=key)
    with written_lines() as written:
        plane.client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
        plane.client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    plane.close()
    assert [line.get("principal") for line in written] == ["operator", None]
    assert [line["status"] for line in written] == [200, 401]
    assert key not in str(written)
    assert KEY not in str(written)


def test_every_field_that_is_given_is_written() -> None:
    """A field that is unknown to the formatter would be lost silently."""
    given = {
        key.value
        for path in SERVICE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword)
        and node.arg == "extra"
        and isinstance(node.value, ast.Dict)
        for key in node.value.keys
        if isinstance(key, ast.Constant)
    }
    assert "job" in given
    assert given <= set(FIELDS)
