"""Client that sends an API key to a control plane that requires one."""

from collections.abc import Sequence

import httpx

from service.auth.keys import parse
from tests.fakes.app_client import AppClient
from tests.fakes.control_plane import ControlPlane

ADMIN_KEY = "operator-of-the-tests-0123456789abcdef"
EVERY_SCOPE = ("admin", "embed", "read", "train", "write")


def secret_of(key: str) -> str:
    """The whole secret: it may contain underscores, as the id before it does."""
    parsed = parse(key)
    assert parsed is not None, "not the form of a key"
    return parsed.secret


class KeyClient(AppClient):
    """Sends the key with each request; `plane.client` can be one."""

    def __init__(self, plane: ControlPlane, key: str | None) -> None:
        super().__init__(plane.app)
        self.plane = plane
        self.key = key

    def request(self, method: str, path: str, **options: object) -> httpx.Response:
        """Any method."""
        if self.key is not None:
            given = options.pop("headers", {})
            assert isinstance(given, dict)
            options["headers"] = {"Authorization": f"Bearer {self.key}", **given}
        return super().request(method, path, **options)

    def make_key(
        self, name: str = "one", scopes: Sequence[str] = EVERY_SCOPE, **more: object
    ) -> dict[str, str]:
        """Create a key; return the response."""
        body = {"name": name, "scopes": list(scopes), **more}
        response = self.post("/v1/keys", json=body)
        assert response.status_code == 201, response.text
        made: dict[str, str] = response.json()
        return made

    def client_with_key(
        self, name: str = "one", scopes: Sequence[str] = EVERY_SCOPE, **more: object
    ) -> "KeyClient":
        """A client with a new key."""
        return KeyClient(self.plane, self.make_key(name, scopes, **more)["key"])
