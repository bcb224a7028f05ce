"""Error messages: the value, what is permitted, what to do."""

from pathlib import Path

import pytest

from cmcl import Client, CmclError, Query
from cmcl.cli import main
from cmcl.cli.errors import Exit
from cmcl.client import InvalidArgument, Job, WrongServer
from cmcl.contract.model import ModelSpec
from tests.fakes.control_plane import SPEC, ControlPlane
from tests.fakes.feature_shards import feature_table, table_with_nan, write_shard
from tests.fakes.responses import AT, body
from tests.unit.client.command_line import Cmcl
from tests.unit.client.either import connected
from tests.unit.client.rest_server import Answer, RestServer

PAIR = ("image", "text")
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


def test_a_rejected_upload_is_named_by_its_local_file(service: Client, tmp_path: Path) -> None:
    service.create_model("scenes", ModelSpec.model_validate(SPEC))
    shard = tmp_path / "birds.parquet"
    write_shard(shard, feature_table(16))
    with pytest.raises(CmclError, match=f"{shard} ") as caught:
        service.add_dataset("scenes", "a", PAIR, [shard, shard], upload="always")
    assert caught.value.status == 422


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


@pytest.mark.parametrize("answer", FOREIGN)
def test_a_foreign_endpoint_is_named(kind: str, server: RestServer, answer: Answer) -> None:
    server.always(answer)
    with connected(kind, server.url) as client:
        for ask in (
            lambda: client.embed("scenes", "image", [[1.0]]),
            lambda: client.collection("pictures"),
        ):
            with pytest.raises(WrongServer, match="not a response of the embeddings endpoint"):
                ask()


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model", "create", "m", "--modality=a=1", "--modality=b=1", "--width=1"], "--width 1: "),
        (
            ["model", "create", "m", "--modality=a=1", "--modality=b=1", "--batch-size=1"],
            "--batch-size 1: ",
        ),
        (["model", "create", "m", "--modality=a=1", "--modality=b=0"], "--modality 0: "),
        (["dataset", "add", "x", "--model=m", "--pair=image,image"], "--pair: "),
        (["dataset", "add", "x", "--model=m", "--pair=image,a b"], "--pair a b: "),
        (["dataset", "add", "no/such", "--model=m", "--pair=a,b"], "no/such"),
        (["upload", "no/such"], "cannot be read: No such file"),
        (["embed", "m", "image", "no/such"], "'no/such'"),
        (["model", "list", "--url=ftp://x"], "--url"),
    ],
)
def test_invalid_arguments_found_by_the_client_are_usage_errors_that_name_the_option(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in errors_of(capsys, *arguments)


@pytest.mark.parametrize("embed", [[1, 2], 5, [[1.0], 2.0], None])
def test_an_invalid_input_is_rejected_with_the_permitted_forms(
    client: Client, server: RestServer, embed: object
) -> None:
    with pytest.raises(InvalidArgument, match="must be a list of features") as caught:
        client.embed("scenes", "image", embed)  # type: ignore[arg-type]
    assert repr(embed) in str(caught.value)
    assert server.asked == []


@pytest.mark.parametrize(
    "query", [{"modality": "text"}, Query("text"), Query("text", [1.0], "red"), "red", None]
)
def test_an_invalid_query_is_rejected_with_the_permitted_forms(
    client: Client, server: RestServer, query: object
) -> None:
    with pytest.raises(InvalidArgument, match=r"write Query\(modality, feature\)"):
        client.search("pictures", query)  # type: ignore[arg-type]
    assert server.asked == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'\n{"id": "a", "modality": "m"}', "line 2: the item has no content"),
        (b'{"id": "a", "modality": "m", "feature": null}', "line 1: the item has no content"),
        (b'{"id": "a", "modality": "m", "text": "a", "data": ""}', "line 1: the item has text and"),
    ],
)
def test_an_item_without_content_is_named_by_file_and_line(
    tmp_path: Path, content: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(content)
    stderr = errors_of(capsys, "collection", "add", "pictures", str(path), code=Exit.FAILED)
    assert f"{path}, {words}" in stderr
    assert "exactly one of feature, text, data" in stderr


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


def test_a_key_is_shown_with_its_owner_and_revoking_is_confirmed(cmcl: Cmcl) -> None:
    made = cmcl("key", "create", "robot", "--scope=read", "--owner=robots")
    assert ["owner", "robots"] in [line.split() for line in made.splitlines()]
    (key,) = cmcl.lines("key", "list")
    assert cmcl("key", "revoke", key["id"]) == f"key {key['id']} is revoked\n"


@pytest.mark.parametrize(("state", "has_time_left"), [("running", True), ("failed", False)])
def test_only_a_running_job_has_time_left(
    server: RestServer, capsys: pytest.CaptureFixture[str], state: str, has_time_left: bool
) -> None:
    progress = {"phase": "training", "eta_seconds": 90.0, "at": AT}
    answers: dict[str, object] = {"items": [], "next_cursor": None, "seconds": 0.0, "phases": []}
    job = body(Job, id=JOB, state=state, progress=progress)
    server.always((200, {**job, **answers, "job": JOB}))
    assert main(["job", "show", JOB, "--url", server.url]) == Exit.OK
    assert ("time left" in capsys.readouterr().out) is has_time_left


def test_a_store_may_be_a_folder_or_a_uri(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").mkdir()
    shown = []
    for store in ("store", str(tmp_path / "store"), (tmp_path / "store").as_uri()):
        main(["admin", "rebuild", "--dry-run", f"--store={store}", "--json"])
        shown.append(capfd.readouterr())
    assert shown[0] == shown[1] == shown[2]
