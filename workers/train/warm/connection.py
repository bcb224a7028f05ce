"""How a job reaches the resident: a protocol, and its way on one node. The way through Ray is in start.py."""

import socket
from pathlib import Path
from typing import Protocol, Self

from workers.train.warm.desk import Answer
from workers.train.warm.wire import Request, answer_from_line

# How long a job waits for news before it looks at what else there is to do.
LOOK_SECONDS = 1.0


class Connection(Protocol):
    """A way to the resident, which hears that the job has gone when the `with` ends."""

    def hear(self) -> Answer | None:
        """What was said last; None where nothing whole has come.

        Raises TimeoutError where that takes longer than LOOK_SECONDS, and OSError where it died.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class OverSocket:
    """To a resident on this node. Raises OSError where none listens at the path."""

    def __init__(self, path: Path, request: Request) -> None:
        self._socket, self._received = socket.socket(socket.AF_UNIX), b""
        try:
            self._socket.connect(str(path))
            self._socket.sendall(request.to_line())
            self._socket.settimeout(LOOK_SECONDS)
        except OSError:
            self._socket.close()
            raise

    def hear(self) -> Answer | None:
        """See the protocol."""
        received = self._socket.recv(1 << 16)
        if not received:
            raise ConnectionError("they ended")
        *lines, self._received = (self._received + received).split(b"\n")
        return answer_from_line(lines[-1]) if lines else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
