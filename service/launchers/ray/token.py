"""The token that a Ray cluster asks for, found where Ray's own programs find it.

Its variables are Ray's, not ours: the same ones are set for every process beside a cluster.
https://docs.ray.io/en/latest/ray-security/token-auth.html
"""

import os
from collections.abc import Generator, Mapping
from pathlib import Path

import httpx

_DEFAULT = Path.home() / ".ray" / "auth_token"


class RayToken(httpx.Auth):
    """Sends the token along. Files are read for each request, because a mounted Secret can change."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """See httpx."""
        if token := self._token():
            request.headers["Authorization"] = f"Bearer {token}"
        yield request

    def _token(self) -> str:
        """Empty where none is asked for. Raises ValueError where one is, and there is none."""
        if self._environment.get("RAY_AUTH_MODE", "").lower() != "token":
            return ""
        if token := self._environment.get("RAY_AUTH_TOKEN", "").strip():
            return token
        path = Path(self._environment.get("RAY_AUTH_TOKEN_PATH") or _DEFAULT)
        try:
            return path.read_text().strip()
        except OSError as error:
            raise ValueError(
                f"RAY_AUTH_MODE is token, RAY_AUTH_TOKEN is not set, and {path} cannot be read "
                f"({error.strerror})"
            ) from error
