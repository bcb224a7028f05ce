"""The client's documentation, and the command in a separate process."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from starlette.types import Receive, Scope, Send

from cmcl import AsyncClient, Client
from cmcl.cli import app
from cmcl.cli.errors import Exit
from cmcl.storage.object_store import ObjectStore
from tests.architecture.documents import code_of
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import feature_table, write_shard
from tests.fakes.preparer import fail, requests_in
from tests.fakes.served_app import served
from tests.unit.client.either import PROMPT
from tests.unit.client.ticking import CLIP, RAW_MODEL, captioned

# The parent process may ignore SIGINT, and children inherit that.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from cmcl.cli import main
sys.exit(main())
"""
# `cmcl up` with one part, which prints its number, and waits in its start if its argument says so. A test run under
# nohup ignores SIGHUP, and children inherit that.
UP = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from cmcl.stack import LocalStack

def start(stack):
    stack.prepare_folder()
    stack._spawn("part", [sys.executable, "-c", "import time; time.sleep(60)"])
    print(stack.processes["part"].pid, flush=True)
    time.sleep(60 if sys.argv[1] == "starting" else 0)

LocalStack.start = start
from cmcl.cli import main
sys.exit(main(["up", "--folder", sys.argv[2], "--json"]))
"""
# Stops a stack whose part does not end by itself, and says when the stop has begun.
STOP = """
import sys, time
from pathlib import Path
from cmcl import stack
from cmcl.stack_host import Ports

def announced(process, ending, signal_group=stack.signal_group):
    print("stopping", flush=True)
    signal_group(process, ending)

stack.signal_group = announced
stack._STOP_SECONDS = 1.0
made = stack.LocalStack(Path(sys.argv[1]), Ports.free())
made.prepare_folder()
ignoring = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True)"
made._spawn("part", [sys.executable, "-c", f"import signal, time; {ignoring}; time.sleep(60)"])
while "ready" not in made.log("part").read_text():
    time.sleep(0.01)
print(made.processes["part"].pid, flush=True)
made.stop()
"""
PAGE = (Path(__file__).parents[3] / "docs" / "client.md").read_text()


@pytest.fixture
def url(published_plane: ControlPlane) -> Iterator[str]:
    with served(published_plane.app) as url:
        yield url


def python_of_the_page() -> list[str]:
    return code_of(PAGE, "python")


def refuse_all(store: ObjectStore) -> None:
    for request in requests_in(store):
        fail(store, request, "invalid_dataset", "image: its rows have another width")


def test_the_pages_python_examples_run(
    published_plane: ControlPlane, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "fashion" / "a.parquet", feature_table(16, widths=(5, 3)))
    monkeypatch.chdir(tmp_path)
    published_plane.preparer = refuse_all
    blocking, awaited = (
        text.replace("http://127.0.0.1:8000", url) for text in python_of_the_page()
    )
    program = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", blocking], stdout=subprocess.PIPE, text=True
    )
    while program.poll() is None:
        published_plane.tick()
        asyncio.run(asyncio.sleep(0.05))
    output, _ = program.communicate()
    assert program.returncode == 0
    assert output.splitlines()[-1] == "job.failed", "its rows have another width"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", awaited], capture_output=True, text=True, check=False
    )
    assert "{'scenes': ModelGate(" in done.stdout, done.stderr


def test_the_page_names_every_call_and_every_command() -> None:
    calls = {name for name in dir(Client) if not name.startswith("_")} - {"close"}
    assert [name for name in sorted(calls) if f"`{name}`" not in PAGE] == []
    root = typer.main.get_command(app)
    names = {
        inner
        for name, command in root.commands.items()  # type: ignore[attr-defined]
        for inner in getattr(command, "commands", {name: None})
    }
    assert [name for name in sorted(names) if f"`{name}`" not in PAGE] == []


def test_ctrl_c_stops_watching_and_not_the_job(published_plane: ControlPlane, url: str) -> None:
    job = published_plane.post_dataset("three")
    watching = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "job", "watch", job, "--json"],
        env={**os.environ, "CMCL_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    assert job in watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    # A signal that arrives between Python's look and its read waits for a heartbeat, 15 s at most.
    _, errors = watching.communicate(timeout=60)
    assert watching.returncode == Exit.INTERRUPTED
    assert f"job {job} continues" in errors
    assert "Traceback" not in errors
    assert published_plane.job(job).state == "queued"


@pytest.mark.parametrize(
    ("state", "ending"),
    [("starting", signal.SIGHUP), ("running", signal.SIGINT), ("running", signal.SIGTERM)],
)
def test_no_part_outlives_a_stack_whose_terminal_closes_or_that_is_interrupted(
    tmp_path: Path, state: str, ending: signal.Signals
) -> None:
    running = subprocess.Popen(
        [sys.executable, "-c", UP, state, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with running:
        assert running.stdout is not None
        part = int(running.stdout.readline())
        if state == "running":
            assert "service_url" in running.stdout.readline()
        running.send_signal(ending)
        running.send_signal(ending)
        assert running.wait(30) == (Exit.INTERRUPTED if state == "starting" else Exit.OK)
    assert not Path(f"/proc/{part}").exists()


def test_a_stop_is_not_interrupted(tmp_path: Path) -> None:
    stopping = subprocess.Popen(
        [sys.executable, "-c", STOP, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with stopping:
        assert stopping.stdout is not None
        part = int(stopping.stdout.readline())
        assert stopping.stdout.readline() == "stopping\n"
        for ending in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            stopping.send_signal(ending)
        assert stopping.wait(30) == 0
    assert not Path(f"/proc/{part}").exists()


def test_following_can_be_cancelled_at_any_time(published_plane: ControlPlane, url: str) -> None:
    job = published_plane.post_dataset("three")

    async def listen() -> str:
        async with AsyncClient(url, retries=PROMPT) as client:
            watching = asyncio.create_task(client.watch(job))
            async for event in client.events(job):
                await asyncio.sleep(0.1)
                watching.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await watching
                return event.kind
        raise AssertionError("there was no event")

    assert asyncio.run(listen()) == "job.queued"
    with Client(url, retries=PROMPT) as client:
        for event in client.events(job):
            assert event.kind == "job.queued"
            break
        assert client.job(job).state == "queued"


def test_a_command_that_is_ended_by_a_signal_leaves_no_packed_files(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    plane = ControlPlane(tmp_path / "plane", encoders=(CLIP,))
    plane.create_model("birds", **RAW_MODEL)
    folder = captioned(tmp_path / "summer", "jay")
    uploading = threading.Event()

    async def hanging(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") == "/v1/uploads":
            uploading.set()
            await asyncio.sleep(60)
        await plane.app(scope, receive, send)

    with served(hanging) as url:
        add = ("dataset", "add", str(folder), "--pair=image,text", "--model=birds")
        adding = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *add],
            env={**os.environ, "CMCL_URL": url, "TMPDIR": str(scratch)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert uploading.wait(60)
        assert [each.name[:9] for each in scratch.iterdir()] == ["cmcl-pack"]
        adding.terminate()
        _, errors = adding.communicate(timeout=60)
    plane.close()
    assert adding.returncode == Exit.TERMINATED
    assert list(scratch.iterdir()) == []
    assert "Traceback" not in errors
