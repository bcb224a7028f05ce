"""One local stack for the whole session: starting Ray costs more than all that is done with it."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from cmcl.client import Client
from cmcl.contract.model import ModelSpec
from cmcl.ports import Ports, StackError
from cmcl.stack import LocalStack
from workers.storage.port import ObjectStore
from workers.storage.uris import open_store

# The same examples on every run, and no bound on their seconds: a machine that is slow today, or an
# example never seen before, is no fault of the change under test.
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")

EXAMPLE_STREAM = Path(__file__).parent.parent / "examples" / "stream"


def pytest_configure() -> None:
    """What holds for the whole session and for the processes that it starts."""
    # Read when torch is imported, which is later. Where others use the machine too, threads that wait
    # for each other take five times as long as one: 291 s against 62 for the maths on two busy cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A session that is told to end (`timeout`, a CI that gives up) ends its stack as well: that one
    # would outlive it, and take a seventh of the machine from whatever is measured next.
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("told to end", returncode=143))


# Before pytest-xdist's own hook, which reads the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests share a worker process (`pytest --dist loadgroup`), the longest group first.

    The stack, the fault stories and the database server are made once and used by all tests of their
    group. Otherwise a file is a group, so that its own fixtures are made once.
    """
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    order = ("stack", "faults", "ranks", "ports", "database")
    items.sort(
        key=lambda item: order.index(group) if (group := groups[item]) in order else len(order)
    )


def _group(item: pytest.Item) -> str:
    if item.get_closest_marker("ray") or "stack" in getattr(item, "fixturenames", ()):
        return "stack"
    path = item.path.relative_to(Path(__file__).parent)
    return path.parts[0] if path.parts[0] in ("faults", "ranks", "ports", "database") else str(path)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """Ray, control plane and embeddings endpoint, started as `cmcl up` starts them."""
    with ExitStack() as closing:
        try:
            running = closing.enter_context(_new_stack(tmp_path_factory))
        except StackError:
            # Ray's client server takes its head along where that needs more than half a minute, as on
            # a very busy machine.
            running = closing.enter_context(_new_stack(tmp_path_factory))
        # Tests of the endpoint put versions into the store by themselves; beside them, a database
        # without any model is a lost one.
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
        encoders=("text=synthetic:8",),
        # So that a test that kills a rank need not train for a minute first.
        extra_environment={"CMCL_CHECKPOINT_SECONDS": "0.2"},
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
