"""HTTP/1.1 by hand, as far as a closed-loop client needs it: what is measured must not be the client.

A library's client costs more per request than the server that is asked (httpx: 0.5 ms).
"""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_VERSION = re.compile(rb"\r\nx-model-version: *(\d+)", re.IGNORECASE)
_LAST = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


class Garbled(Exception):
    """The server's bytes are no answer that this client can read."""


@dataclass(frozen=True)
class Head:
    """What an answer begins with. `version` is 0 where none is named."""

    status: int
    version: int
    begin: int
    end: int
    is_last: bool


def request(address: str, path: str, body: bytes, content_type: str, accept: str = "*/*") -> bytes:
    """The whole request. `address` is `http://host:port`."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(address).netloc}\r\nAccept: {accept}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def head_of(data: bytes | bytearray, filled: int) -> Head | None:
    """The head of the answer that `data` begins with; None until it has all arrived.

    Raises Garbled where no length is told: nothing that is measured here answers in chunks.
    """
    end = data.find(_END, 0, filled)
    if end < 0:
        return None
    text = bytes(data[: end + 2])
    length = _LENGTH.search(text)
    if length is None or not text.startswith(b"HTTP/1."):
        raise Garbled(f"an answer that begins with {text[:60]!r} tells no length")
    version = _VERSION.search(text)
    begin = end + len(_END)
    return Head(
        status=int(text[9:12]),
        version=int(version[1]) if version else 0,
        begin=begin,
        end=begin + int(length[1]),
        is_last=_LAST.search(text) is not None,
    )
