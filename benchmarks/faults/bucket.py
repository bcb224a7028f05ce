"""An S3 server behind a TCP proxy that can refuse connections, like an unavailable store."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import boto3
from moto.server import ThreadedMotoServer

_BUCKET = "faults"
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "something",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class TcpProxy:
    """Forwards connections to `server` while it is open."""

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self._server = (str(parts.hostname), int(parts.port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._passing: set[socket.socket] = set()
        self.is_open = True
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._listen, name="proxy", daemon=True).start()

    def shut(self) -> None:
        """Close all connections and refuse new ones."""
        self.is_open = False
        for passing in list(self._passing):
            _hang_up(passing)

    def close(self) -> None:
        """Close the proxy permanently."""
        self.shut()
        _hang_up(self._listener)
        self._listener.close()

    def _listen(self) -> None:
        while True:
            try:
                visitor, _ = self._listener.accept()
            except OSError:
                return  # The proxy was closed.
            if self.is_open:
                threading.Thread(target=self._pass, args=[visitor], daemon=True).start()
            else:
                visitor.close()

    def _pass(self, visitor: socket.socket) -> None:
        with closing(visitor), closing(socket.create_connection(self._server)) as server:
            self._passing |= {visitor, server}
            answers = threading.Thread(target=_copy, args=[server, visitor], daemon=True)
            answers.start()
            _copy(visitor, server)
            answers.join()
            self._passing -= {visitor, server}


@contextmanager
def bucket() -> Iterator[tuple[str, str, TcpProxy]]:
    """Yield the URI of a new bucket, the server's own address, and the proxy."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    os.environ.update(_CREDENTIALS, AWS_ENDPOINT_URL=address)
    boto3.client("s3").create_bucket(Bucket=_BUCKET)
    proxy = TcpProxy(address)
    try:
        yield f"s3://{_BUCKET}", address, proxy
    finally:
        proxy.close()
        server.stop()
        for name in (*_CREDENTIALS, "AWS_ENDPOINT_URL"):
            del os.environ[name]


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
    except OSError:
        pass  # The proxy was shut, or one side has closed the connection.
    _hang_up(target)


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # Already closed.
