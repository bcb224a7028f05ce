"""Error messages: the value, what is permitted, what to do."""

from pathlib import Path

import pytest

from cmcl import Client
from cmcl.cli import main
from cmcl.cli.errors import Exit
from cmcl.client import InvalidArgument
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import table_with_nan, write_shard
from tests.unit.client.command_line import Cmcl
from tests.unit.client.rest_server import Answer, RestServer

JOB = "job-0123456789ab"
# What servers that are not cmcl answer to a path that they do not have.
FOREIGN: list[Answer] = [
    (404, "<html>\n<h1>404 Not Found</h1>\nnginx</html>"),
    (404, {"detail": "Not Found"}),
    (405, {"detail": "Method Not Allowed"}),
    (403, "<html>log in</html>"),
    (200, "<html>a login page</html>"),
]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def errors_of(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = Exit.USAGE) -> str:
    """Return the single line on stderr of a command that ends with that code."""
    assert main(list(arguments)) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err


def test_a_job_that_failed_on_an_upload_names_the_local_file(
    cmcl: Cmcl, published_plane: ControlPlane, tmp_path: Path
) -> None:
    shard = tmp_path / "birds.parquet"
    write_shard(shard, table_with_nan(16))
    add = ("dataset", "add", str(shard), "--pair=image,text", "--model=scenes", "--upload=always")
    job = cmcl.one(*add)["job"]["id"]
    published_plane.run_to_end(job)
    assert "birds.parquet" in cmcl("job", "watch", job, code=Exit.NO_VERSION)
    assert "birds.parquet" in cmcl("job", "show", job)


@pytest.mark.parametrize("answer", FOREIGN)
def test_a_foreign_server_is_named_in_one_line_with_the_setting(
    server: RestServer, answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.always(answer)
    stderr = errors_of(capsys, "job", "show", JOB, "--url", server.url, code=Exit.FAILED)
    assert f"{server.url} answered HTTP {answer[0]}" in stderr
    assert "not a response of the control plane: set CMCL_URL, --url" in stderr


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/proxy/v1"])
def test_an_address_that_ends_with_v1_is_rejected_with_the_right_one(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "http://127.0.0.1:8000"
    stderr = errors_of(capsys, "model", "list", "--url", f"{url}{path}")
    assert f"write {url}{path.removesuffix('/').removesuffix('/v1')} (CMCL_URL, --url" in stderr
    with pytest.raises(InvalidArgument, match="CMCL_EMBEDDINGS_URL"):
        Client(embeddings_url=f"http://anna:secret@127.0.0.1:8001{path}")


def test_a_password_in_a_rejected_address_is_not_shown() -> None:
    with pytest.raises(InvalidArgument) as caught:
        Client("http://anna:secret@127.0.0.1:8000/v1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("embed", [[1, 2], 5, [[1.0], 2.0], None])
def test_an_invalid_input_is_rejected_with_the_permitted_forms(
    client: Client, server: RestServer, embed: object
) -> None:
    with pytest.raises(InvalidArgument, match="must be a list of features") as caught:
        client.embed("scenes", "image", embed)  # type: ignore[arg-type]
    assert repr(embed) in str(caught.value)
    assert server.asked == []


def test_a_missing_key_is_reported_with_its_variable(
    server: RestServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = "a key is needed: send it as Authorization: Bearer cmcl_..."
    server.always((401, {"type": "urn:cmcl:problem:unauthorized", "detail": needed}))
    command = ("model", "list", "--url", server.url)
    stderr = errors_of(capsys, *command, code=Exit.FAILED)
    assert "CMCL_KEY" in stderr
    assert "Authorization" not in stderr
    server.always((401, {"type": "urn:cmcl:problem:unauthorized", "detail": "expired"}))
    monkeypatch.setenv("CMCL_KEY", "cmcl_x")
    assert "expired (the key is set by CMCL_KEY)" in errors_of(capsys, *command, code=Exit.FAILED)
