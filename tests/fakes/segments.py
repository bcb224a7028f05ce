"""What a client receives on a socket: bytes up to a mark or to the end, and the number of TCP segments."""

import socket
import struct
from contextlib import suppress

# `tcpi_data_segs_in` of Linux's `struct tcp_info`.
_OFFSET = 152


def segments_received(client: socket.socket) -> int:
    """TCP segments with data in them, since it was connected. Two of them may be read at once."""
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _OFFSET + 4)
    found: int = struct.unpack_from("=I", info, _OFFSET)[0]
    return found


def read(client: socket.socket) -> bytes:
    """Read until the other end closes."""
    received = b""
    with suppress(ConnectionError):
        while more := client.recv(1 << 16):
            received += more
    return received


def read_until(client: socket.socket, end: bytes) -> bytes:
    """Read until what was received ends so; fail if the other end closes before."""
    found = b""
    while not found.endswith(end):
        piece = client.recv(1 << 20)
        assert piece, f"closed after {found[:200]!r}"
        found += piece
    return found
