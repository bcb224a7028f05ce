"""The local stack, without starting its large parts."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import astuple, fields
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from cmcl.demo.run import DemoOptions, run_demo
from cmcl.haproxy import places
from cmcl.stack import LocalStack
from cmcl.stack_host import Ports, StackError
from service.core.settings import Settings
from tests.architecture.repository import ROOT
from tests.unit.client.recording_stack import RecordingStack

# Prints the id of a child that would run for a minute, and waits for it.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[LocalStack]:
    stack = LocalStack(tmp_path, Ports.free(), ranks=3, allowed_prefixes=("a", "b"))
    yield stack
    stack.stop()


@pytest.fixture
def parent(stack: LocalStack) -> Iterator[subprocess.Popen[bytes]]:
    """A part of the stack with a child process."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, start_new_session=True
    )
    stack.processes["part"] = process
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout:
        process.stdout.close()


def test_free_ports_differ_and_can_be_bound() -> None:
    ports = Ports.free()
    numbers = set(astuple(ports))
    assert len(numbers) == len(fields(ports))
    assert max(numbers) < 30_000, (
        "no other process takes such a port before its process has started"
    )
    for number in numbers:
        with socket.socket() as free:
            free.bind(("127.0.0.1", number))


def test_an_occupied_port_is_named_in_the_error() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        with pytest.raises(StackError, match=rf"port {port} cannot be used \(.* in use\)"):
            Ports.free(service=port)


def test_a_temporary_folder_with_a_path_too_long_for_sockets_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HAProxy ended with "fatal errors", minutes later."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        longest = Path(folder) / ("x" * (22 - len(folder) - 1))
        longest.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(longest))
        stack = LocalStack(tmp_path, Ports.free())
        try:
            files = places(stack.ports, stack.proxy_folder)
            sockets = [path for name, path in files.items() if name.endswith("SOCKET_PATH")]
            # Ray adds a folder named by the node, and HAProxy's own bound is 97.
            node = "0" * 56
            assert len(sockets) == 2
            assert max(len(path) + len(f"/{node}") for path in sockets) <= 97
        finally:
            stack.stop()
        monkeypatch.setattr(tempfile, "tempdir", f"{longest}y")
        with pytest.raises(StackError, match=r"has a path of 23 characters.*set TMPDIR"):
            LocalStack(tmp_path, Ports.free())


def test_the_service_accepts_the_environment_of_the_stack(
    stack: LocalStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Regardless of the user's shell: keys are off, so no other machine on the network may ask.
    monkeypatch.setenv("CMCL_HOST", "0.0.0.0")
    for name, value in stack._environment().items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.host == "127.0.0.1"
    assert settings.store_uri == stack.store_uri
    assert settings.allowed_prefixes == ("a", "b")
    assert settings.ray_address == stack.dashboard_url
    assert (settings.ranks, settings.port) == (3, stack.ports.behind_proxy)
    assert settings.database_url == f"sqlite:///{stack.folder}/cmcl.db"


def test_every_variable_that_the_stack_sets_is_a_setting(stack: LocalStack) -> None:
    ours = {name for name in stack._environment() if name.startswith("CMCL_")} - set(os.environ)
    known = {f"CMCL_{field.upper()}" for field in Settings.model_fields}
    assert ours <= known


PORT = re.compile(r"(?:--[\w-]*port|(?:RAY|CMCL)_\w*PORT)=(\d+)")


def test_stacks_do_not_share_ray_ports(tmp_path: Path) -> None:
    """An occupied agent port prevents jobs."""
    named = []
    for name in ("one", "other"):
        stack = RecordingStack(tmp_path / name, Ports.free())
        stack.start_ray()
        named.append({port[1] for text in stack.arguments if (port := PORT.fullmatch(text))})
        stack.stop()
        assert {"--dashboard-agent-listen-port=0", *_given(stack.ports)} <= set(stack.arguments)
    assert named[0] & named[1] == {"0"}


def _given(ports: Ports) -> set[str]:
    return {
        f"--port={ports.ray}",
        f"RAY_SERVE_FALLBACK_PROXY_HTTP_PORT={ports.proxy_fallback}",
    }


def test_the_next_ray_ends_the_proxy_that_a_killed_one_left(tmp_path: Path) -> None:
    stack = RecordingStack(tmp_path, Ports.free())
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen([*sleeping, str(stack.proxy_folder)], start_new_session=True) as proxy:
        stack.start_ray()
        assert proxy.wait(10) == -signal.SIGKILL
    stack.stop()


def test_stopping_a_part_ends_its_children(
    stack: LocalStack, parent: subprocess.Popen[bytes]
) -> None:
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    stack.stop()
    assert parent.returncode == -signal.SIGTERM
    assert stack.processes == {}
    assert has_ended(child)


def test_a_part_that_exits_is_detected(stack: LocalStack, parent: subprocess.Popen[bytes]) -> None:
    assert stack.ended() == []
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()
    assert stack.ended() == ["part"]


def test_a_part_that_exits_at_once_is_reported_with_its_last_line(
    stack: LocalStack,
) -> None:
    stack.log("part").parent.mkdir(parents=True)
    stack.log("part").write_text("of an earlier run\n")
    stack._spawn("part", [sys.executable, "-c", "print('first\\nrebuild it\\n')"])
    with pytest.raises(StackError, match=r"part ended while it was starting: rebuild it \(log: "):
        stack._wait("part", "http://127.0.0.1:9")
    stack._spawn("part", [sys.executable, "-c", ""])
    with pytest.raises(StackError, match="starting: it printed nothing"):
        stack._wait("part", "http://127.0.0.1:9")


def test_a_port_that_haproxy_cannot_bind_is_named(stack: LocalStack) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", stack.ports.service))
        held.listen()
        stack.prepare_folder()
        stack.start_service()
        with pytest.raises(
            StackError,
            match=rf"cannot bind socket \(Address already in use\) for \[127.0.0.1:{stack.ports.service}\]",
        ):
            stack.wait_for_service()


class StackWithFakeRay(LocalStack):
    """Its Ray ends `failures` times while it starts, and leaves a process that holds the dashboard's port."""

    failures = 1

    def start_ray(self) -> None:
        tries = self.folder / "tries"
        with tries.open("a") as file:
            file.write("x")
        fails = str(len(tries.read_text()) <= self.failures)
        port = str(self.ports.dashboard)
        self._spawn(
            "ray", [sys.executable, "-c", FAKE_RAY, port, fails, str(self.folder / "child")]
        )


# Arguments: port, whether it fails, and a file for the id of the process that it leaves. Like Ray's dashboard, it answers
# before its node is registered.
FAKE_RAY = """
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

port, fails, file = int(sys.argv[1]), sys.argv[2] == "True", Path(sys.argv[3])
nodes = []

class Dashboard(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": {"hostNameList": nodes}}).encode())

if fails and os.fork():
    while not file.exists():
        time.sleep(0.01)
    print("Some Ray subprocesses exited unexpectedly:")
    print("  raylet [exit code=-9]", flush=True)
    sys.exit(1)
server = HTTPServer(("127.0.0.1", port), Dashboard)
for _ in range(2):
    server.handle_request()
if fails:
    file.write_text(str(os.getpid()))
    time.sleep(60)
nodes.append("this machine")
server.serve_forever()
"""


def test_a_ray_that_ends_while_it_starts_is_started_again_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    reported: list[str] = []
    stack = StackWithFakeRay(tmp_path, Ports.free(), report=reported.append)
    try:
        stack.prepare_folder()
        stack.start_ray()
        stack.wait_for_ray()  # The second one listens on the port that a process of the first held.
        assert has_ended(int((tmp_path / "child").read_text()))
        assert (tmp_path / "tries").read_text() == "xx"
        assert "(2 of 3)" in reported[0]
        assert len(reported) == 2
    finally:
        stack.stop()


def test_a_ray_that_never_starts_is_an_error_with_its_cause(tmp_path: Path) -> None:
    stack = StackWithFakeRay(tmp_path, Ports.free())
    stack.failures = 9
    try:
        stack.prepare_folder()
        stack.start_ray()
        with pytest.raises(StackError, match=r"raylet \[exit code=-9\] \(log: .* 3 times"):
            stack.wait_for_ray()
        assert (tmp_path / "tries").read_text() == "xxx"
    finally:
        stack.stop()


def test_the_start_waits_for_the_driver_of_this_run(tmp_path: Path) -> None:
    reported: list[str] = []
    stack = LocalStack(tmp_path, Ports.free(), report=reported.append)
    ready = tmp_path / "store" / "driver.json"
    ready.parent.mkdir()
    ready.write_text("of an earlier run")
    program = (
        "import pathlib, sys, time; path = pathlib.Path(sys.argv[1]); assert not path.exists(); "
        "time.sleep(0.3); path.write_text('{}'); time.sleep(60)"
    )
    try:
        stack.prepare_folder()
        stack._spawn("service", [sys.executable, "-c", program, str(ready)])
        stack.wait_for_driver()
        assert ready.read_text() == "{}"
    finally:
        stack.stop()
    (line,) = reported
    assert line.startswith("the driver with its training ranks is ready after ")


def test_a_ray_that_lost_a_process_is_reported_with_that_process(stack: LocalStack) -> None:
    stack.log("ray").parent.mkdir(parents=True)
    # As Ray 2.60 prints it when its raylet is killed.
    stack.log("ray").write_text(
        "\nSome Ray subprocesses exited unexpectedly:\n  raylet [exit code=-9]\n\n"
        "Remaining processes will be killed.\n"
    )
    assert stack.last_words("ray", "ended").startswith("Ray ended: raylet [exit code=-9] (log: ")


def test_a_folder_is_locked_until_its_process_ends(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from cmcl.stack_host import FolderLock; "
        "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    key_client = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with key_client:
        assert key_client.stdout is not None
        assert key_client.stdout.readline() == b"held\n"
        second = LocalStack(tmp_path, Ports.free())
        with pytest.raises(StackError, match=f"in use by process {key_client.pid}: stop it"):
            second.prepare_folder()
        (tmp_path / ".cmcl-demo").touch()
        with pytest.raises(StackError, match="in use by process"):
            run_demo(
                DemoOptions(ROOT / "examples/stream", ROOT / "examples/raw", tmp_path), Console()
            )
        key_client.kill()
    second.prepare_folder()
    second.stop()


def has_ended(pid: int) -> bool:
    """Return whether a process is gone or a zombie, within the seconds that a killed one may take on a busy machine."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def modes(folder: Path) -> dict[str, str]:
    return {path.name: oct(path.stat().st_mode & 0o777) for path in sorted(folder.iterdir())}


def test_files_of_the_stack_are_private_to_its_user(tmp_path: Path) -> None:
    stack = RecordingStack(tmp_path / "made", Ports.free(), keys=True)
    try:
        stack.prepare_folder()
        LocalStack._spawn(
            stack, "part", ["sh", "-c", f"touch {tmp_path}/made/store/file; echo printed"]
        )
        stack.processes["part"].wait()
        assert oct(stack.folder.stat().st_mode & 0o777) == "0o700"
        folders = {"keys": "0o700", "logs": "0o700", "store": "0o700"}
        assert modes(stack.folder) == {**folders, "lock": "0o600"}
        assert modes(stack.folder / "store") == {"file": "0o600"}
        assert modes(stack.folder / "keys").keys() == {"operator", "private.pem", "public.pem"}
        assert set(modes(stack.folder / "keys").values()) == {"0o600"}
        # Ray creates its own folder and sockets with mode 0777.
        stack.start_ray()
        [ray] = [part for part in stack.arguments if part.startswith("--temp-dir=")]
        above = Path(ray.removeprefix("--temp-dir=")).parent
        assert oct(above.stat().st_mode & 0o777) == "0o700"
        assert stack.proxy_folder.parent == above
    finally:
        stack.stop()


def test_with_keys_the_service_requires_them_and_the_operators_key_is_kept(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path, Ports.free(), keys=True)
    try:
        stack.prepare_folder()
        stack.start_service()
        stack.wait_for_service()
        address = f"{stack.service_url}/v1/whoami"
        assert httpx.get(address).status_code == 401
        response = httpx.get(address, headers={"Authorization": f"Bearer {stack.operator_key}"})
        assert "admin" in response.json()["scopes"]
    finally:
        stack.stop()
    again = RecordingStack(tmp_path, Ports.free(), keys=True)
    again.prepare_folder()
    again.stop()
    assert again.operator_key == stack.operator_key


def make_keys(folder: Path, operator: str = "o" * 32) -> None:
    """The keys of an earlier start, which a process of the service takes seconds to make."""
    (folder / "keys").mkdir()
    for name, text in {"operator": operator, "private.pem": "PRIVATE", "public.pem": "P"}.items():
        (folder / "keys" / name).write_text(text)


def test_no_part_but_the_service_gets_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray passes its environment to replicas and attempts, which run users' code."""
    make_keys(tmp_path)
    stack = RecordingStack(tmp_path, Ports.free(), keys=True)
    try:
        stack.prepare_folder()
        secrets = {
            f"CMCL_{name.upper()}"
            for name, field in Settings.model_fields.items()
            if "SecretStr" in str(field.annotation)
        }
        of_service = secrets - {"CMCL_ADMIN_KEY", "CMCL_SNAPSHOT_SIGNING_KEY"}
        assert of_service == {"CMCL_ENCRYPTION_KEY", "CMCL_METRICS_KEY"}
        for name in {*secrets, "CMCL_KEY"}:
            monkeypatch.setenv(name, f"secret of {name}")
        for start in (stack.start_ray, stack.start_embeddings):
            start()
            assert stack.operator_key is not None
            assert stack.operator_key not in " ".join(stack.arguments)
            assert "PRIVATE" not in " ".join(stack.arguments)
            assert "secret of" not in " ".join(stack.arguments)
        stack.start_service()
        assert {f"{name}=secret of {name}" for name in of_service} <= set(stack.arguments)
        assert f"CMCL_ADMIN_KEY={stack.operator_key}" in stack.arguments
    finally:
        stack.stop()


def test_an_exported_key_that_differs_from_the_saved_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_keys(tmp_path, "a" * 32)
    without = RecordingStack(tmp_path, Ports.free())
    with pytest.raises(StackError, match="has keys: add --keys"):
        without.prepare_folder()
    without.stop()
    for key, refused in (("a" * 32, False), ("b" * 32, True)):
        monkeypatch.setenv("CMCL_ADMIN_KEY", key)
        stack = RecordingStack(tmp_path, Ports.free(), keys=True)
        try:
            with (
                pytest.raises(StackError, match=rf"CMCL_ADMIN_KEY .*{tmp_path}/keys/operator")
                if refused
                else nullcontext()
            ):
                stack.prepare_folder()
            assert stack.operator_key == "a" * 32
        finally:
            stack.stop()
