"""A control plane on a local port, served as the product serves it; its loops run when the test says so."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from service.app import make_server
from tests.fakes.control_plane import ControlPlane

# Not a secret: of control planes that exist for seconds.
OPERATOR = "operator-of-the-browser-tests-0123456789"
EVERYTHING = ("admin", "embed", "read", "train", "write")


class ServedPlane(ControlPlane):
    """A control plane with keys, whose client sends real requests: `asyncio.run` fails beside a browser.

    The client has the key `key`, of a person who may do everything.
    """

    origin = ""
    # Before the path of each address; a proxy would remove it.
    prefix = ""
    key = ""

    @contextmanager
    def served(self) -> Iterator[None]:
        """Serve until the block ends."""
        app: ASGIApp = BehindPrefix(self.app, self.prefix) if self.prefix else self.app
        server = make_server(app, self.context.settings)
        # The test runs the reconciler itself, so that each step is where it expects it.
        server.config.lifespan = "off"
        thread = threading.Thread(target=server.run, name="served plane")
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            self.origin = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=self.origin + self.prefix, timeout=60) as client:
                self.client = client  # type: ignore[assignment]
                self.key = self.key or self.create_key("anna", *EVERYTHING)
                client.headers["authorization"] = f"Bearer {self.key}"
                yield
        finally:
            # Otherwise it would wait for streams of pages that were just closed.
            server.force_exit = server.should_exit = True
            thread.join()

    def create_key(self, name: str, *scopes: str, owner: str = "default") -> str:
        """A new key, with the operator's."""
        body = {"name": name, "scopes": scopes, "owner": owner}
        headers = {"authorization": f"Bearer {OPERATOR}"}
        response = self.client.post("/v1/keys", json=body, headers=headers)
        assert response.status_code == 201, response.text
        key: str = response.json()["key"]
        return key

    @cached_property
    def cookies(self) -> list[dict[str, str]]:
        """The cookie of one session of the client's key, for all visitors: a key has few sessions."""
        return self.sign_in(self.key)

    def sign_in(self, key: str) -> list[dict[str, str]]:
        """The cookie of a new session."""
        form = {"key": key}
        headers = {"origin": self.origin, "sec-fetch-site": "same-origin"}
        response = httpx.post(f"{self.origin}{self.prefix}/ui/login", data=form, headers=headers)
        assert response.status_code == 303, response.text
        return [
            {"name": name, "value": value, "url": self.origin}
            for name, value in response.cookies.items()
        ]


@contextmanager
def serve(
    folder: Path, prefix: str = "", key: str = "", **settings: object
) -> Iterator[ServedPlane]:
    """Serve a new control plane, or the one that is in the folder, until the block ends.

    `key`: the client's; by default a new one.
    """
    plane = ServedPlane(folder, port=0, auth="on", admin_key=OPERATOR, **settings)  # type: ignore[arg-type]
    plane.key, plane.prefix = key, prefix
    try:
        with plane.served():
            yield plane
    finally:
        plane.close()


class BehindPrefix:
    """Answers under a path prefix, which the app does not see: an Ingress with a rewritten path."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI. Other paths are 404 by the app."""
        if scope["type"] == "http":
            path = scope["path"].removeprefix(self._prefix)
            is_within = path != scope["path"] and path.startswith("/")
            path = path if is_within else "/outside-of-the-prefix"
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)
