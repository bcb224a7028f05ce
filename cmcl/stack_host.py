"""What a local stack takes of this machine: ports on loopback, a locked folder with keys, processes."""

import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
# Where neither Linux (32768 on) nor Ray (workers 10002 to 19999, Serve's replicas 30000 on) takes ports
# by itself: any of theirs may be taken again before the process that it is meant for has started.
_PORTS = range(20_000, 30_000)
_TAIL_BYTES = 16384
_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_RAY_LOST_A_PROCESS = "Ray subprocesses exited unexpectedly:"
_HAPROXY_CANNOT_BIND = "cannot bind "


class StackError(Exception):
    """A part of the local stack cannot start. The message names its log, or the option to change."""


@dataclass(frozen=True)
class Ports:
    """Ports on loopback. The control plane has one of its own, behind its proxy at `service`."""

    service: int
    embeddings: int
    behind_proxy: int
    ray: int
    dashboard: int
    proxy_metrics: int
    proxy_stats: int
    proxy_fallback: int

    @classmethod
    def free(cls, service: int = 0, embeddings: int = 0) -> "Ports":
        """Free ports; those that are given are checked instead. Raises StackError if taken."""
        if service and service == embeddings:
            raise StackError(f"port {service} is given twice; the two endpoints need one each")
        sockets = [_bound(port) if port else _any() for port in (service, embeddings, *[0] * 6)]
        numbers = [held.getsockname()[1] for held in sockets]
        for held in sockets:
            held.close()
        return cls(*numbers)


def _bound(port: int) -> socket.socket:
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((HOST, port))
        # Without it, the address can be bound a second time, as part of the same choice of ports.
        held.listen()
    except OSError as error:
        held.close()
        raise StackError(
            f"port {port} cannot be used ({error.strerror}); choose another one"
        ) from error
    return held


def _any() -> socket.socket:
    for _ in range(len(_PORTS)):
        try:
            return _bound(secrets.choice(_PORTS))
        except StackError:
            continue
    raise StackError(
        f"no port from {_PORTS.start} to {_PORTS.stop - 1} is free; end what holds them"
    )


class FolderLock:
    """An exclusive lock of a stack's folder. The system releases it when this process ends."""

    def __init__(self, folder: Path) -> None:
        """Raises StackError while another process has it."""
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._file = os.fdopen(descriptor, "a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip()
            self._file.close()
            raise StackError(
                f"{folder} is in use by process {holder}: stop it, or choose another --folder"
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let others have the folder."""
        self._file.close()


@dataclass(frozen=True)
class OperatorKeys:
    """The operator's key and the pair that signs the list of keys; each is made once and stays.

    Files `operator`, `private.pem` and `public.pem` of a private folder. The service makes the pair, as
    it has the library for it.
    """

    folder: Path

    @property
    def operator(self) -> str | None:
        """The key that may do everything; None before `make`."""
        path = self.folder / "operator"
        return path.read_text(encoding="ascii") if path.is_file() else None

    @property
    def signing_key(self) -> str:
        """The private key in PEM that signs the list of keys."""
        return (self.folder / "private.pem").read_text(encoding="ascii")

    @property
    def public_key(self) -> Path:
        """The file by which the endpoint verifies the list."""
        return self.folder / "public.pem"

    def make(self) -> None:
        """Make what is missing. Raises StackError if CMCL_ADMIN_KEY is not the saved key."""
        exported, saved = os.environ.get("CMCL_ADMIN_KEY"), self.operator
        if saved is None:
            self._write("operator", exported or secrets.token_hex(32))
        elif exported and exported != saved:
            raise StackError(
                f"CMCL_ADMIN_KEY differs from the operator's key in {self.folder / 'operator'}: "
                "unset the variable to use the saved key, or remove the file to replace it"
            )
        if not (self.folder / "private.pem").is_file():
            command = [sys.executable, "-m", "service", "keys", "signing-key"]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode != 0:
                raise StackError(f"no signing key could be made: {made.stderr.strip()}")
            private, begin, public = made.stdout.partition("-----BEGIN PUBLIC KEY-----")
            self._write("public.pem", begin + public)
            self._write("private.pem", private)

    def _write(self, name: str, text: str) -> None:
        """Write the whole file or none: half a key would be read as a key at the next start."""
        written = self.folder / f".{name}"
        written.write_text(text, encoding="ascii")
        written.chmod(0o600)
        written.rename(self.folder / name)


def signal_group(process: "subprocess.Popen[bytes]", number: int) -> None:
    """Send a signal to a process and its children."""
    with suppress(ProcessLookupError):  # All of the group has ended already.
        os.killpg(process.pid, number)


def end_strays(argument: str) -> None:
    """Kill what outlived Ray and has this text in its arguments: HAProxy runs in its own session."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            if argument in command.split("\0", 1)[-1]:
                os.kill(int(entry.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # It has ended, or belongs to another user.


def without_client_server(parameters: Any, head: bool) -> None:  # noqa: ARG001 - Ray calls it
    """Hook of `ray start`, named by RAY_START_HOOK: start no server for Ray's client.

    cmcl does not use it, and a head ends if the server cannot reach the raylet within 30 s. `ray start` has no option for
    it: its default is port 10001, and 0 is refused.
    """
    parameters.ray_client_server_port = None


def busy() -> str:
    """Return e.g. "the machine is busy (load 40 on 2 cores)"; empty if it is not."""
    waiting, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"the machine is busy (load {waiting:.0f} on {cores} cores)" if waiting > cores else ""


def last_line(log: Path, start: int) -> str:
    """Return the last line of a log after `start` bytes, or the cause: what Ray has lost, or HAProxy cannot bind."""
    with log.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(start, size - _TAIL_BYTES))
        lines = opened.read().decode(errors="replace").split("\n")
    printed = [line.strip() for line in lines if line.strip()] or ["it printed nothing"]
    # Ray names the process that ended, and says last that it ends the others; HAProxy says last that it ends.
    named = [
        *(after for line, after in pairwise(printed) if line.endswith(_RAY_LOST_A_PROCESS)),
        *(line for line in printed if _HAPROXY_CANNOT_BIND in line),
    ]
    return named[-1] if named else printed[-1]


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Ignore the signals that would end this process, so that what it started is stopped to the end.

    Another thread than the main one may not, and is not interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, signal.SIG_IGN) for each in _ENDING}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
