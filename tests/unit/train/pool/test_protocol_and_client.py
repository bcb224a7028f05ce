"""Messages between jobs and the pool, and what a job does with them."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.running import newest_progress
from workers.storage.local import LocalStore
from workers.train.pool import client
from workers.train.pool.protocol import (
    PoolSetup,
    Request,
    socket_path,
    status_from_line,
    status_to_line,
)
from workers.train.pool.queue import Attempt, AttemptStatus

ATTEMPT = Attempt("file:///store", "job-1", 2)
SETUP = PoolSetup("abc", 2, 1, 0.0)
REQUEST = Request(ATTEMPT, SETUP, "lab", 60.0)
WORDS = "line one\nline two: naïve"


def test_messages_come_through_whole() -> None:
    assert Request.from_line(REQUEST.to_line()) == REQUEST
    answer = AttemptStatus("failed", WORDS)
    assert status_to_line(answer).count(b"\n") == 1
    assert status_from_line(status_to_line(answer)) == answer


@pytest.mark.parametrize("line", [b"", b"[]\n", b"{}\n", b'{"attempt": {}, "setup": {}}\n'])
def test_other_messages_are_refused(line: bytes) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        Request.from_line(line)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, for this process only."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_the_socket_is_in_a_private_folder(folder: Path) -> None:
    path = socket_path("10.0.0.1:6379")
    assert path.name == "6379.sock"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.parent.chmod(0o755)
    with pytest.raises(PermissionError, match="not private to this user"):
        socket_path("10.0.0.1:6379")


@pytest.fixture
def listener(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A pool's socket on the cluster in RAY_ADDRESS."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(socket_path("127.0.0.1:6379")))
        listening.listen()
        yield listening


def answer_with(
    listener: socket.socket, *lines: bytes, expected: Request = REQUEST
) -> threading.Thread:
    """Act as the pool for one job: send these lines, then disconnect."""

    def play() -> None:
        connection, _ = listener.accept()
        with connection:
            assert Request.from_line(connection.recv(1 << 16)) == expected
            for line in lines:
                connection.sendall(line)

    thread = threading.Thread(target=play)
    thread.start()
    return thread


def test_job_waits_for_the_final_answer(listener: socket.socket) -> None:
    long = AttemptStatus("failed", WORDS * 20_000)
    whole = status_to_line(AttemptStatus("working")) + status_to_line(long)
    playing = answer_with(listener, whole[:10], whole[10:])
    assert client.train_in_pool(REQUEST) == long
    playing.join()


@pytest.mark.parametrize("lines", [(), (status_to_line(AttemptStatus("working")),)])
def test_a_job_trains_with_its_own_ranks_if_the_pool_dies(
    listener: socket.socket, lines: tuple[bytes, ...]
) -> None:
    playing = answer_with(listener, *lines)
    assert client.train_in_pool(REQUEST) is None
    playing.join()


def test_a_job_trains_with_its_own_ranks_if_the_group_differs_and_reports_why(
    listener: socket.socket, tmp_path: Path
) -> None:
    attempt = Attempt((tmp_path / "store").as_uri(), "job-1", 2)
    request = Request(attempt, SETUP)
    answer = status_to_line(AttemptStatus("rejected", "CMCL_RANKS is 4"))
    playing = answer_with(listener, answer, expected=request)
    assert client.train_in_pool(request) is None
    playing.join()
    progress = newest_progress(LocalStore(tmp_path / "store"), "job-1", 2)
    assert progress is not None
    assert (progress.phase, progress.note) == (
        "starting",
        "this attempt starts its own ranks: CMCL_RANKS is 4",
    )


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (None, ("waiting", None)),
        (AttemptStatus("working", "the ranks start"), ("starting", "the ranks start")),
    ],
    ids=["queued", "without ranks"],
)
def test_a_job_that_waits_reports_progress(
    listener: socket.socket,
    tmp_path: Path,
    status: AttemptStatus | None,
    expected: tuple[str, str | None],
) -> None:
    attempt = Attempt((tmp_path / "store").as_uri(), "job-1", 2)
    store = LocalStore(tmp_path / "store")
    reported: list[tuple[str, str | None]] = []

    def play() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            if status is not None:
                connection.sendall(status_to_line(status))
            while (progress := newest_progress(store, "job-1", 2)) is None:
                time.sleep(0.01)
            reported.append((progress.phase, progress.note))
            connection.sendall(status_to_line(AttemptStatus("done")))

    playing = threading.Thread(target=play)
    playing.start()
    assert client.train_in_pool(Request(attempt, SETUP)) == AttemptStatus("done")
    playing.join()
    assert reported == [expected]
