"""The bounded child: what ends it, and that it leaves nothing behind."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmcl.contract.errors import InvalidDataset, StorageUnavailable
from tests.fakes.child_tasks import Order, work
from workers.sandbox.child import (
    Child,
    ChildCrashed,
    ChildLimits,
    ChildPool,
    ScratchFolder,
    TaskFailed,
    share_of_memory,
)

LIMITS = ChildLimits(memory=512 << 20, seconds=120)
QUICK = ("tests.fakes.child_tasks",)


# Warm children that tests of other modules have left in this process, and the one that tests share.
OTHERS: set[int] = set()
SHARED: list[Child] = []


@pytest.fixture(scope="module", autouse=True)
def _others() -> None:
    OTHERS.update(children())


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    gc.collect()
    assert list(folder.iterdir()) == []
    assert children() == []


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    folder = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(folder))
        child = Child(LIMITS, QUICK)
    SHARED.append(child)
    yield child
    assert list(child.scratch.path.iterdir()) == []
    child.close()
    assert list(folder.iterdir()) == []


def children(parent: int | None = None) -> list[int]:
    """Child processes of this process, or of the one named."""
    found, known = [], OTHERS | {each.pid for each in SHARED}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, status = (folder / "cmdline").read_bytes(), (folder / "stat").read_text()
        except OSError:
            continue
        is_ours = int(status.rpartition(")")[2].split()[1]) == (parent or os.getpid())
        if is_ours and int(folder.name) not in known and b"workers.sandbox.child_process" in words:
            found.append(int(folder.name))
    return found


def is_alive(process: int) -> bool:
    """Neither gone nor a zombie of its new parent."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def test_results_come_in_order_with_their_bytes(child: Child) -> None:
    frames = list(child.run(work, Order(does="echo", number=200)))
    assert [frame.header for frame in frames] == [{"number": number} for number in range(200)]
    assert all(frame.body == b"a" * at + b"b" * at for at, frame in enumerate(frames))


def test_one_process_runs_many_tasks(child: Child) -> None:
    pids = set()
    for _ in range(3):
        (frame,) = child.run(work, Order(does="print"))
        pids.add(frame.header["pid"])
    assert pids == {child.pid}


def test_files_of_users_are_read_without_keys(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMCL_ADMIN_KEY", "k" * 40)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with Child(LIMITS, QUICK) as child:
        (frame,) = child.run(work, Order(does="print"))
    assert "AWS_ENDPOINT_URL" in frame.header["environment"]
    assert not [name for name in frame.header["environment"] if name.startswith(("CMCL_", "RAY_"))]


def test_what_a_task_raises_is_raised(child: Child) -> None:
    with pytest.raises(InvalidDataset, match="s3://a/b: it is damaged"):
        list(child.run(work, Order(does="refuse")))
    with pytest.raises(TaskFailed, match=r"(?s)KeyError: 'a bug'.*Traceback") as failed:
        list(child.run(work, Order(does="fail")))
    assert failed.value.error == "KeyError"
    assert failed.value.retry_can_help
    assert len(list(child.run(work, Order(does="echo", number=2)))) == 2


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_names_step_and_signal_and_the_next_task_runs(child: Child, number: int) -> None:
    with pytest.raises(ChildCrashed) as crashed:
        list(child.run(work, Order(does="crash", number=number)))
    assert (crashed.value.step, crashed.value.reason) == (
        "doing crash",
        f"ended with {signal.Signals(number).name}",
    )
    assert len(list(child.run(work, Order(does="echo", number=1)))) == 1


def test_a_task_that_takes_too_long_is_ended(child: Child) -> None:
    list(child.run(work, Order()))
    with pytest.raises(ChildCrashed, match=r"took more than 1 s"):
        list(child.run(work, Order(does="spin", number=1)))
    with pytest.raises(ChildCrashed, match="took more than"):
        list(child.run(work, Order(does="sleep"), seconds=0.5))


def test_time_in_which_the_parent_does_not_read_does_not_count(child: Child) -> None:
    results = child.run(work, Order(does="echo", number=3), seconds=20)
    next(results)
    before = child.waited
    time.sleep(0.5)
    assert len(list(results)) == 2
    assert child.waited - before < 0.4


def test_a_task_that_takes_too_much_memory_is_ended(child: Child) -> None:
    with pytest.raises(ChildCrashed, match="took more than 512 MiB of memory"):
        list(child.run(work, Order(does="allocate", number=600 << 20)))


def test_a_child_that_sends_anything_else_than_frames_is_ended(child: Child) -> None:
    with pytest.raises(ChildCrashed, match="sent no results"):
        list(child.run(work, Order(does="forge")))
    assert child.pid is None


def test_one_crash_is_retried_and_a_second_one_refuses_the_file(
    child: Child, tmp_path: Path
) -> None:
    (frame,) = child.collect(work, Order(does="crash once", path=str(tmp_path / "mark")))
    assert frame.header == {"files": ["left"]}
    assert list(child.scratch.path.iterdir()) == []
    with pytest.raises(InvalidDataset, match=r"^doing crash ended with SIGSEGV, twice"):
        child.collect(work, Order(does="crash", number=signal.SIGSEGV))


def test_a_child_that_cannot_start_says_why(scratch: Path) -> None:
    with (
        Child(LIMITS, ("tests.fakes.no_such_module",)) as child,
        pytest.raises(StorageUnavailable, match=r"(?s)ended with status 1 .*no_such_module"),
    ):
        list(child.run(work, Order()))


def test_killing_the_child_from_another_thread_ends_its_task(child: Child) -> None:
    results = child.run(work, Order(does="sleep"))
    next(results)
    threading.Timer(0.1, child.kill).start()
    with pytest.raises(ChildCrashed, match="ended with SIGKILL"):
        next(results)


def test_results_that_are_not_read_to_the_end_end_the_process(child: Child) -> None:
    results = child.run(work, Order(does="sleep"))
    process = next(results).header["pid"]
    results.close()
    assert not is_alive(process)


def test_the_child_ends_with_its_parent_and_its_folder_is_removed_later(
    scratch: Path, tmp_path: Path
) -> None:
    program = (
        "import sys\n"
        "from workers.sandbox.child import Child\n"
        "from workers.sandbox.child import ChildLimits\n"
        "from tests.fakes.child_tasks import Order, work\n"
        "child = Child(ChildLimits(512 << 20), ('tests.fakes.child_tasks',))\n"
        "results = child.run(work, Order(does='sleep'))\n"
        "print(next(results).header['pid'], flush=True)\n"
        "next(results)"
    )
    words = [sys.executable, "-c", program]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        process = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 60
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(process)
    (abandoned,) = scratch.iterdir()
    os.utime(abandoned, (0, 0))
    with Child(LIMITS, QUICK):
        assert not abandoned.exists()


def test_a_folder_in_use_is_not_removed(scratch: Path) -> None:
    used = ScratchFolder()
    os.utime(used.path, (0, 0))
    other = ScratchFolder()
    assert used.path.exists()
    used.close()
    other.close()


def test_a_warm_child_serves_one_owner_alone(scratch: Path) -> None:
    pool = ChildPool(LIMITS)

    def pid(owner: str) -> int:
        with pool.borrow(owner) as child:
            (frame,) = child.run(work, Order(does="print"))
            return int(frame.header["pid"])

    first = pid("acme")
    assert pid("acme") == first
    other = pid("globex")
    assert other != first
    assert pid("acme") not in (first, other)
    pool.close()
    assert children() == []


def test_a_process_gives_way_once_however_often_it_is_asked() -> None:
    program = (
        "import os\n"
        "from workers.sandbox.child_process import give_way_to_queries\n"
        "for _ in range(2): give_way_to_queries(); print(os.nice(0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert list(map(int, done.stdout.split())) == [max(os.nice(0), 10)] * 2


def test_a_share_of_memory_is_bounded_on_both_sides() -> None:
    assert 512 << 20 <= share_of_memory() <= 8192 << 20


def test_a_child_of_another_owner_ends_before_the_next_one_works(scratch: Path) -> None:
    """Only the memory of children in use is reserved."""
    pool = ChildPool(LIMITS)
    with pool.borrow("acme") as child:
        of_acme = child.pid
    with pool.borrow("globex") as child:
        assert of_acme not in children()
        assert child.pid in children()
    pool.close()


def test_a_child_that_keeps_much_memory_does_not_wait_for_its_owner(scratch: Path) -> None:
    pool = ChildPool(LIMITS)
    with pool.borrow("acme") as child:
        list(child.run(work, Order(does="keep")))
        large = child.pid
        assert child.resident_bytes > 256 << 20
    assert large not in children()
    with pool.borrow("acme") as child:
        list(child.run(work, Order(does="print")))
        small = child.pid
        assert 0 < child.resident_bytes < 256 << 20
    assert small in children()
    pool.close()
