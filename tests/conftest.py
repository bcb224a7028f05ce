"""One local stack for the whole session: starting Ray takes longer than all tests that use it."""

import gc
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from cmcl.client import Client
from cmcl.contract.encoder import parse_encoder
from cmcl.contract.model import ModelSpec
from cmcl.stack import LocalStack
from cmcl.stack_host import Ports, StackError
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.uris import open_store

# The same examples on every run, and no time limit: a slow machine or a new example is not a defect
# of the change under test.
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")

# Some hundred processes of a session import our sources and those of the tests. If the environment
# disables the bytecode cache, each of them would compile them again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

EXAMPLE_STREAM = Path(__file__).parent.parent / "examples" / "stream"

# With the names of those in docs/start.md, which are real.
ENCODERS = (
    "efficientnet-lite0=synthetic:image:1280",
    "minilm=synthetic:text:384",
    '{"name": "recorder", "kind": "synthetic", "takes": "audio", "width": 24, "window_seconds": 4, "num_cpus": 0.1}',
)


# Temporary folders of tests are in memory if this has room for them: on a disk, tests that write files spend half
# of their time waiting for fsync.
_MEMORY = Path("/dev/shm")
_ROOM = 8 << 30
_LONG_SECONDS = 60
# Between two reports of a metric by Ray's processes, by default 10.
METRICS_SECONDS = 4


def pytest_configure() -> None:
    """Configure the session and the processes that it starts."""
    if os.access(_MEMORY, os.W_OK):
        found = os.statvfs(_MEMORY)
        if found.f_bavail * found.f_frsize >= _ROOM and not found.f_flag & os.ST_NOEXEC:
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))
    # Read when torch is imported, which is later. Where others use the machine too, threads that wait
    # for each other take five times as long as one: 291 s against 62 for the maths on two busy cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A session that gets SIGTERM (`timeout`, a cancelled CI job) ends its stack as well. Otherwise the
    # stack would outlive it, and take a seventh of the machine from the next measurement.
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("ended by SIGTERM", returncode=143))


# Stops the session's stack, which starts when a test first requests it.
_STACK = pytest.StashKey[ExitStack]()

# Each group shares a stack, a database server or scenarios among its tests. The slowest groups come
# first. Tests of `clusters` start their own clusters.
_GROUPS = (
    ("ray", "e2e"),
    ("clusters",),
    ("faults",),
    ("ranks",),
    ("ports",),
    ("browser",),
    ("database",),
)


class ByGroup(LoadScopeScheduling):
    """Runs all tests of a group in one process, and otherwise all tests of a file."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        place = _place(path)
        return path if place == len(_GROUPS) else str(place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByGroup:
    """Replace the scheduler of pytest-xdist, whose groups by marker do not work with pytest 9.2."""
    return ByGroup(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Versions of Python differ in what each module meets, and not from case to case: see `make test-fast`."""
    parser.addoption(
        "--of-each-file", type=int, metavar="N", help="run the first N tests of a file"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort tests by group; within one they keep their order."""
    items.sort(key=lambda item: _place(item.nodeid.partition("::")[0]))
    most = config.getoption("--of-each-file")
    if most:
        by_file = groupby(items, key=lambda item: item.path)
        items[:] = [item for _, tests in by_file for item in islice(tests, most)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the seconds of each folder, fixtures included, where a session takes more than a minute."""
    seconds = defaultdict[str, float](float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                folders = report.nodeid.partition("::")[0].split("/")[1:-1]
                seconds["/".join(folders[:2])] += report.duration
    if sum(seconds.values()) > _LONG_SECONDS:
        terminalreporter.section("seconds by folder")
        for folder in sorted(seconds, key=seconds.__getitem__, reverse=True):
            terminalreporter.write_line(f"{seconds[folder]:7.1f}  {folder}")


def pytest_collection_finish() -> None:
    """Exclude collected tests and imported libraries from garbage collection.

    Each full collection would go through a million objects that stay until the end.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _shared_statements() -> Iterator[None]:
    """Give the SQLite engines that the control plane opens one dialect and one cache of compiled statements.

    Nearly every test of it opens a database, and compiling statements for each takes a sixth of the time of such a test.
    """
    # Imported here: some sessions run no test of the control plane.
    import sqlalchemy

    from service.database import engine

    # A dialect knows the version of SQLite from the first connection of its engine.
    donor = sqlalchemy.create_engine("sqlite://")
    donor.connect().close()
    donor.dispose()
    cache: dict[Any, Any] = {}

    def create_engine(url: sqlalchemy.URL, **options: Any) -> sqlalchemy.Engine:
        created = sqlalchemy.create_engine(url, **options)
        if created.dialect.name == donor.dialect.name:
            created.dialect = donor.dialect
            created.update_execution_options(compiled_cache=cache)
        return created

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "create_engine", create_engine)
        yield


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop the stack after its last test: an idle one takes a seventh of two cores from the other tests."""
    closing = item.config.stash.get(_STACK, None)
    if closing is not None and (nextitem is None or not _shares_stack(nextitem)):
        closing.close()


def _shares_stack(item: pytest.Item) -> bool:
    return _place(item.nodeid.partition("::")[0]) == 0


def _place(path: str) -> int:
    """The number of the group that has that file of tests, or how many groups there are."""
    folder = path.split("/")[1]
    return next((i for i, group in enumerate(_GROUPS) if folder in group), len(_GROUPS))


@pytest.fixture(scope="session")
def stack(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalStack]:
    """Ray, control plane and embeddings endpoint, started as `cmcl up` starts them."""
    with ExitStack() as closing:
        pytestconfig.stash[_STACK] = closing
        try:
            running = closing.enter_context(_new_stack(tmp_path_factory))
        except StackError:
            # Ray's client server ends the head if starting it takes more than half a minute, as on a
            # very busy machine.
            running = closing.enter_context(_new_stack(tmp_path_factory))
        # Tests of the endpoint write versions to the store directly; next to these, a database
        # without any model counts as lost.
        with Client(running.service_url, running.embeddings_url) as client:
            client.create_model("first", ModelSpec(modalities={"image": 2, "text": 2}))
        yield running


def _new_stack(tmp_path_factory: pytest.TempPathFactory) -> LocalStack:
    prefixes = (EXAMPLE_STREAM.as_uri(), tmp_path_factory.getbasetemp().as_uri())
    return LocalStack(
        tmp_path_factory.mktemp("stack"),
        Ports.free(),
        ranks=2,
        allowed_prefixes=prefixes,
        encoders=tuple(map(parse_encoder, ENCODERS)),
        extra_environment={
            # So that a test that kills a rank need not train for a minute first.
            "CMCL_CHECKPOINT_SECONDS": "0.2",
            # Ranks stay for the whole session; ten questions a second to each took a tenth of a core.
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            "RAY_metrics_report_interval_ms": str(1000 * METRICS_SECONDS),
        },
    )


@pytest.fixture
def client(stack: LocalStack) -> Iterator[Client]:
    with Client(stack.service_url, stack.embeddings_url) as client:
        yield client


@pytest.fixture
def store(stack: LocalStack) -> ObjectStore:
    return open_store(stack.store_uri)


@pytest.fixture
def serve_url(stack: LocalStack) -> str:
    return stack.embeddings_url
