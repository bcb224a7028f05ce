"""New connections are queued by source address: one that fills its queue keeps no other source waiting."""

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from service.api.connections import LISTENERS, listen_by_source
from tests.unit.service.edge import is_answered, served_edge

BACKLOG = 8
SOURCES = [f"127.0.1.{number}" for number in range(1, 65)]


@contextmanager
def listening() -> Iterator[list[socket.socket]]:
    """All listening sockets of a port, from which nothing is accepted."""
    with ExitStack() as stack:
        first = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=BACKLOG))
        others = [stack.enter_context(each) for each in listen_by_source(first, BACKLOG)]
        yield [first, *others]


def connected(
    address: tuple[str, int], source: str, stack: ExitStack, seconds: float = 0.2
) -> bool:
    """Whether the kernel queues a connection from there within that time."""
    client = stack.enter_context(socket.socket())
    client.settimeout(seconds)
    client.bind((source, 0))
    return client.connect_ex(address) == 0


def test_a_source_that_fills_its_queue_keeps_no_other_waiting() -> None:
    with listening() as sockets, ExitStack() as stack:
        address = sockets[0].getsockname()
        assert len(sockets) == LISTENERS
        flood = [connected(address, "127.0.0.2", stack) for _ in range(BACKLOG + 4)]
        assert not all(flood)
        waiting = sum(not connected(address, source, stack) for source in SOURCES)
        # Those that share its queue by chance: two of them are expected at most.
        assert waiting < len(SOURCES) // 4


def test_a_source_uses_one_queue() -> None:
    with listening() as sockets, ExitStack() as stack:
        queues = {source: set[socket.socket]() for source in SOURCES}
        for source in SOURCES * 3:
            assert connected(sockets[0].getsockname(), source, stack, 10)
            (queue,), _, _ = select.select(sockets, [], [], 10)
            stack.enter_context(queue.accept()[0])
            queues[source].add(queue)
        assert {len(each) for each in queues.values()} == {1}
        assert len(set.union(*queues.values())) > LISTENERS // 4


def test_a_port_with_several_queues_is_taken() -> None:
    with listening() as sockets, pytest.raises(OSError, match="in use"):
        socket.create_server(sockets[0].getsockname())


def test_connections_of_every_queue_are_answered_until_the_server_ends() -> None:
    with served_edge(most=1024) as edge:
        for source in SOURCES:
            with edge.connect(source) as client:
                assert is_answered(client)
        address = edge.address
    with ExitStack() as stack:
        assert not any(connected(address, source, stack) for source in SOURCES)


def test_where_sockets_cannot_share_a_port_one_is_left_as_it_was() -> None:
    with socket.socket(socket.AF_UNIX) as first, pytest.raises(OSError, match="share a port"):
        listen_by_source(first, BACKLOG)
