"""A client that holds many connections, from an address of its own."""

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

ADDRESS = "127.0.0.2"
# Of this process besides.
_SPARE = 1024


@contextmanager
def crowd(port: int, size: int, sent: bytes = b"") -> Iterator[None]:
    """So many connections to a port of this machine, which send that and wait until the block ends.

    Connections that the server closes stay closed. The limit of open files is raised meanwhile.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = size + _SPARE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        with ExitStack() as clients:
            for _ in range(size):
                # One that is refused may be reset before `connect` returns.
                with suppress(ConnectionError):
                    client = socket.create_connection(
                        ("127.0.0.1", port), timeout=10, source_address=(ADDRESS, 0)
                    )
                    clients.enter_context(client)
                    client.sendall(sent)
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
