"""Errors on the command line: exit code, one line, no traceback."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cmcl.cli import main
from cmcl.cli.errors import Exit, error_message, run_command
from tests.unit.client.rest_server import RestServer


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("text", ["not json", "5", '{"a": 1}', "[[1.0], 2.0]", "\udcff", None])
def test_a_file_without_features_is_named(
    tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "features.json"
    if text is not None:
        path.write_bytes(text.encode(errors="surrogateescape"))
    code = Exit.USAGE if text is None else Exit.FAILED
    assert main(["embed", "scenes", "image", str(path)]) == code
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"id": "a", "feature": [1.0]}', "line 1: 'modality' is missing"),
        (b'\n{"id": "a", "modality": "m", "size": 1}', "line 2: unknown field 'size'"),
        (b'{"id": 7, "modality": "m"}', "line 1: 'id' is 7"),
        (b'{"id": "a", "modality": "m", "feature": ["x"]}', "line 1: 'feature'"),
        (b'{"id": "a", "modality": "m", "feature": "AAA="}', "2 bytes"),
        (b'{"id": "a", "modality": "m", "data": "?"}', "line 1: 'data' is not base64"),
        (b"[1]", "id, modality"),
        (b'\n{"id": "a", "modality": "m"}', "line 2: the item has no content"),
        (b'{"id": "a", "modality": "m", "feature": null}', "line 1: the item has no content"),
        (b'{"id": "a", "modality": "m", "text": "a", "data": ""}', "line 1: the item has text and"),
        (b"PAR1\x15\x04\xff", "looks like Parquet"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"not json", "line 1 is not valid JSON"),
    ],
)
def test_an_invalid_item_is_reported_with_its_line(
    tmp_path: Path, content: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "items.parquet"
    path.write_bytes(content)
    assert main(["collection", "add", "pictures", str(path)]) == Exit.FAILED
    shown = capsys.readouterr().err
    assert str(path) in shown
    assert words in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize("text", ["image", "image=", "image=wide", "image=\u00b2", "image=-1"])
def test_a_modality_without_a_width_is_named(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "create", "scenes", "--modality", text]) == Exit.USAGE
    assert "write NAME=WIDTH" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["up", "--port=0"], "--port"),
        (["up", "--port=65536"], "--port"),
        (["up", "--port=http"], "--port"),
        (["bogus"], "bogus"),
        (["model", "show"], "MODEL"),
        (["version", "show", "scenes", "zero"], "VERSION"),
        (["version", "show", "scenes", "0"], "VERSION"),
        (["version", "show", "scenes@zero"], "write NAME@VERSION"),
        (["version", "show", "scenes@0"], "numbered from 1"),
        (["version", "retire", "scenes", "--yes"], "scenes@VERSION"),
        (["model", "branch", "scenes", "new"], "scenes@VERSION"),
        (["model", "branch", "scenes", "x", "new"], "MODEL@VERSION NAME"),
        (["job", "show", "nope"], "'nope' is not a job id; `cmcl job list`"),
        (["job", "watch", "job-1"], "`cmcl job list`"),
        (["dataset", "show", "fashion"], "'fashion' is not a dataset id; `cmcl dataset list`"),
        (["key", "revoke", "robot"], "`cmcl key list`"),
        (["webhook", "delete", "x"], "`cmcl webhook list`"),
        (["dataset", "add", "x", "--model=m", "--pair=image"], "write FIRST,SECOND"),
        (["dataset", "add", "x", "--model=m", "--pair=a,b", "--upload=maybe"], "maybe"),
        (
            ["dataset", "add", "x", "--model=m", "--pair=a,b", "--evaluation-share=0.7"],
            "--evaluation-share",
        ),
        (["dataset", "add", "s3://b/---.parquet", "--model=m", "--pair=a,b"], "--name"),
        (["model", "gate", "m", "--unset", "mood"], "permitted are max-drift"),
        (["search", "pictures", "text"], "a FEATURE file, --text TEXT or --data FILE"),
        (["search", "pictures", "text", "x.json", "--text=a"], "exactly one of a FEATURE file"),
        (["search", "pictures"], "--words, or both"),
        (["search", "pictures", "--data=x.png", "--words=a"], "the MODALITY is missing"),
        (["search", "pictures", "text", "--text=a", "--where=5"], "--where"),
        (["search", "pictures", "text", "--text=a", "--where={"], "--where"),
        (["embed", "shapes"], "--text TEXT"),
        (["embed", "shapes", "text", "x.json", "--text=a"], "--text TEXT"),
    ],
)
def test_invalid_arguments_are_usage_errors(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == Exit.USAGE
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model", "create", "m", "--modality=image=1"], "two modalities; only 'image' is given"),
        (["model", "create", "m", "--modality=a=1", "--modality=b=1", "--width=1"], "--width 1: "),
        (["dataset", "add", "x", "--model=m", "--pair=image,image"], "two different modalities"),
    ],
)
def test_invalid_options_are_usage_errors_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == Exit.USAGE
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_an_unreachable_server_has_its_own_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        assert main(["model", "list", "--url", url]) == Exit.UNREACHABLE
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot connect to {url} ")
    assert "is `cmcl up` running?" in error
    assert "set CMCL_URL" in error


def test_a_server_without_tls_is_answered_with_its_http_address(
    server: RestServer, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.url.replace("http://", "https://")
    assert main(["model", "list", "--url", url]) == Exit.UNREACHABLE
    assert f"{url} does not use TLS; try {server.url}\n" in capsys.readouterr().err


def test_a_server_error_is_shown_with_its_request_id(
    server: RestServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.always((500, {"detail": "it was logged"}, {"X-Request-ID": "r-9"}))
    assert main(["model", "list", "--url", server.url]) == Exit.FAILED
    assert capsys.readouterr().err == "error: it was logged (request r-9)\n"


def test_an_internal_error_shows_a_traceback_only_in_debug_mode(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> None:
        raise KeyError("oh")

    assert run_command(run) == Exit.FAILED
    assert capsys.readouterr().err == (
        "error: internal error in cmcl, please report it: KeyError('oh') (CMCL_DEBUG=1 shows the traceback)\n"
    )
    monkeypatch.setenv("CMCL_DEBUG", "1")
    run_command(run)
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_has_the_exit_code_of_shells() -> None:
    def run() -> None:
        raise KeyboardInterrupt

    assert run_command(run) == Exit.INTERRUPTED
    assert int(Exit.INTERRUPTED) == 130


def test_exit_codes_of_system_exits_are_passed_on() -> None:
    def run(code: object) -> None:
        raise SystemExit(code)

    assert run_command(lambda: run(2)) == 2
    assert run_command(lambda: run(None)) == 0
    assert run_command(lambda: run("words")) == 1
    assert (
        error_message(OSError(28, "No space left on device"))
        == "[Errno 28] No space left on device"
    )


def test_a_declined_confirmation_changes_nothing(
    server: RestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda _="": "n")
    assert main(["model", "delete", "m", "--url", server.url]) == Exit.FAILED
    assert server.asked == []


def test_a_closed_pipe_ends_the_command_without_an_error(server: RestServer) -> None:
    program = f"import sys; from cmcl.cli import main; sys.exit(main({['model', 'list']!r}))"
    items = [{"id": n} for n in range(3)]
    server.always((200, {"items": items, "next_cursor": None}))
    shell = f"{sys.executable} -c '{program.replace(chr(39), chr(34))}' | true"
    done = subprocess.run(
        shell,
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        env={"CMCL_URL": server.url, "PATH": "/usr/bin:/bin"},
    )
    assert "Traceback" not in done.stderr


def test_importing_the_client_loads_neither_large_modules_nor_terminal_libraries() -> None:
    program = "import json, sys; from cmcl import Client; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    loaded = set(json.loads(done.stdout))
    assert "cmcl.client" in loaded
    # Not rich: httpx loads it for a command line of its own.
    heavy = {"torch", "ray", "numpy", "pyarrow", "boto3", "typer", "fastapi", "service"}
    assert loaded.isdisjoint(heavy)
