# Generated from cmcl/client/_async/session.py by `make docs`; edit that file.
"""HTTP session: connections, retries, idempotency keys, pagination."""

import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

import httpx
from pydantic import BaseModel

from cmcl.client.concurrency import Clock, file_content
from cmcl.client.connection import Connection, Retries
from cmcl.client.errors import WrongServer
from cmcl.client.wire import (
    Params,
    Request,
    Side,
    check_server,
    condition,
    content_type,
    is_repeatable,
    json_bytes,
    listed,
    may_be_done,
    read,
    refused,
    unreachable,
    validated,
)

T = TypeVar("T", bound=BaseModel)


class Session:
    """HTTP connections of one client. `clock` and `retries` are used by calls that wait."""

    def __init__(
        self,
        connection: Connection,
        retries: Retries,
        transport: httpx.BaseTransport | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.retries = retries
        self.clock = clock or Clock()
        self.is_near = connection.is_near
        self._clients = connection.open(httpx.Client, transport)

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            client.close()

    def get(self, kind: type[T], path: str) -> T:
        """GET one object of the control plane."""
        return read(kind, self.send(Request("GET", path)))

    def post(
        self,
        kind: type[T],
        path: str,
        body: object = None,
        key: str | None = None,
        if_match: int | None = None,
    ) -> T:
        """POST with one Idempotency-Key for all attempts: `key`, or a new one."""
        headers = {
            "idempotency-key": key or new_key(),
            **content_type(body),
            **condition(if_match),
        }
        request = Request("POST", path, headers=headers, content=json_bytes(body))
        return read(kind, self.send(request))

    def put(
        self, kind: type[T], path: str, body: object, if_match: int | None = None
    ) -> tuple[T, httpx.Response]:
        """PUT. `if_match`: expected revision of the object."""
        headers = {**content_type(body), **condition(if_match)}
        response = self.send(Request("PUT", path, headers=headers, content=json_bytes(body)))
        return read(kind, response), response

    def delete(self, path: str) -> None:
        """DELETE. A 404 of the server after a lost response means that an earlier attempt succeeded."""
        request = Request("DELETE", path)
        response, is_maybe_done = self._attempts(request)
        if response.is_success:
            return
        error = refused(request.side, response)
        is_gone = error.status == httpx.codes.NOT_FOUND and not isinstance(error, WrongServer)
        if not (is_maybe_done and is_gone):
            raise error

    def pages(self, kind: type[T], path: str, params: Params | None = None) -> Iterator[T]:
        """Iterate over a list. Fetches a page when its first item is needed."""
        query = dict(params or {})
        while True:
            response = self.send(Request("GET", path, params=query))
            page = listed(response, "items", Side.SERVICE)
            for item in page["items"]:
                yield validated(kind, item, response)
            if not page.get("next_cursor"):
                return
            query["cursor"] = page["next_cursor"]

    def send(self, request: Request) -> httpx.Response:
        """Send a request with retries, and return its successful response. Raises CmclError."""
        response, _ = self._attempts(request)
        if not response.is_success:
            raise refused(request.side, response)
        return response

    def _attempts(self, request: Request) -> tuple[httpx.Response, bool]:
        """Return the last response, and whether an attempt before it may have been carried out.

        Raises Unreachable, WrongServer.
        """
        is_maybe_done = False
        for attempt in range(1, self.retries.attempts + 1):
            try:
                response = self._once(request)
            except httpx.TransportError as error:
                if attempt >= self.retries.attempts or not is_repeatable(request, error):
                    raise unreachable(request.side, error) from error
                is_maybe_done |= may_be_done(error)
                self.clock.sleep(self.retries.pause(attempt))
                continue
            check_server(request.side, response)
            pause = self.retries.pause_after(response, attempt)
            if pause is None or not is_repeatable(request, response):
                return response, is_maybe_done
            is_maybe_done |= may_be_done(response)
            self.clock.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def stream(
        self, request: Request, read_timeout: float
    ) -> AbstractContextManager[httpx.Response]:
        """Open a stream, without retries. Each read is limited to `read_timeout` seconds."""
        client = self._clients[request.side]
        timeout = httpx.Timeout(client.timeout.connect, read=read_timeout)
        return client.stream(**request.options(), timeout=timeout)  # type: ignore[arg-type]

    def _once(self, request: Request) -> httpx.Response:
        options = request.options()
        if request.file is not None:
            options["content"] = file_content(request.file, request.on_sent)
        return self._clients[request.side].request(**options)  # type: ignore[arg-type]


class Calls:
    """Base class of the calls of a client."""

    def __init__(self, session: Session) -> None:
        self._session = session


def new_key() -> str:
    """Return a new Idempotency-Key."""
    return uuid.uuid4().hex
