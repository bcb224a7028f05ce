"""Number of TCP segments received, which reading cannot tell: two segments may be read
at once.
"""

import socket
import struct

# `tcpi_data_segs_in` of Linux's `struct tcp_info`.
_OFFSET = 152


def segments_received(client: socket.socket) -> int:
    """TCP segments with data in them, since it was connected."""
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _OFFSET + 4)
    found: int = struct.unpack_from("=I", info, _OFFSET)[0]
    return found
