"""Minimal HTTP/1.1 for a closed-loop client, so that the client is not what is measured.

A library's client costs more per request than the server (httpx: 0.5 ms).
"""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_VERSION = re.compile(rb"\r\nx-model-version: *(\d+)", re.IGNORECASE)
_LAST = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


class MalformedResponse(Exception):
    """The response is not valid, or uses features that this client does not support."""


@dataclass(frozen=True)
class Head:
    """Status line and headers of a response. `version` is 0 if none is named."""

    status: int
    version: int
    begin: int
    end: int
    is_last: bool


def request(address: str, path: str, body: bytes, content_type: str, accept: str = "*/*") -> bytes:
    """Return the whole request. `address` is `http://host:port`."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(address).netloc}\r\nAccept: {accept}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def head_of(data: bytes | bytearray, filled: int) -> Head | None:
    """Parse the head of the response at the start of `data`, or return None if it is incomplete.

    Raises MalformedResponse without a content-length: no server measured here sends chunked responses.
    """
    end = data.find(_END, 0, filled)
    if end < 0:
        return None
    text = bytes(data[: end + 2])
    length = _LENGTH.search(text)
    if length is None or not text.startswith(b"HTTP/1."):
        raise MalformedResponse(f"a response that begins with {text[:60]!r} has no content-length")
    version = _VERSION.search(text)
    begin = end + len(_END)
    return Head(
        status=int(text[9:12]),
        version=int(version[1]) if version else 0,
        begin=begin,
        end=begin + int(length[1]),
        is_last=_LAST.search(text) is not None,
    )
