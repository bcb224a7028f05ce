"""Keeps the embeddings application on a Ray cluster: `python serve.py ADDRESS CONFIG`, until SIGTERM.

A head that was started anew has forgotten what it served. So this looks every few seconds at what is
served, and hands CONFIG over when an application of it is missing. One that could not be deployed, because
something else was not there yet, is removed first: to Ray the same CONFIG once more is nothing to do.
ADDRESS is that of Ray's dashboard; the token is in RAY_AUTH_TOKEN.
Exit status 1: Ray does not accept CONFIG.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import httpx
import yaml

_APPLICATIONS = "/api/serve/applications/"
_SECONDS = 5.0
# The response includes the start of Serve's controller.
_PATIENCE = 60.0


class NotAccepted(Exception):
    """Ray's own words about a configuration."""


class Keeper:
    """Looks, and hands over what is missing. `tell` hears what changed since the last look."""

    def __init__(
        self, client: httpx.Client, config: dict[str, Any], tell: Callable[[str], None]
    ) -> None:
        self._client, self._config, self._tell = client, config, tell
        self._told = ""
        self._is_current = False

    def look(self) -> None:
        """Raises NotAccepted."""
        try:
            said = ", ".join(f"{name} is {state}" for name, state in self._served().items())
        except httpx.HTTPError as error:
            said = f"Ray does not answer: {error}"
        if said != self._told:
            self._tell(said)
        self._told = said

    def _served(self) -> dict[str, str]:
        """The state of each application of ours, once all are handed over."""
        states = self._states()
        failed = "DEPLOY_FAILED" in states.values()
        if failed:
            self._client.delete(_APPLICATIONS).raise_for_status()
        # A running application may have an older configuration; Ray compares them.
        if failed or not self._is_current or None in states.values():
            self._hand_over()
            self._is_current = True
        return {name: state or "handed over" for name, state in states.items()}

    def _hand_over(self) -> None:
        answer = self._client.put(_APPLICATIONS, json=self._config)
        if answer.status_code == httpx.codes.BAD_REQUEST:
            raise NotAccepted(answer.text)
        answer.raise_for_status()

    def _states(self) -> dict[str, str | None]:
        """None for what is not there."""
        answer = self._client.get(_APPLICATIONS)
        answer.raise_for_status()
        names = [application["name"] for application in self._config["applications"]]
        try:
            served = answer.json()["applications"]
            return {name: served.get(name, {}).get("status") for name in names}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            message = f"no list of applications, but {answer.text[:80]!r}"
            raise httpx.DecodingError(message, request=answer.request) from error


def keep(keeper: Keeper, pause: Callable[[float], object] = time.sleep) -> NoReturn:
    """Looks, and pauses for so many seconds, until one of them raises. Raises NotAccepted."""
    while True:
        keeper.look()
        pause(_SECONDS)


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    if len(arguments) != 2:
        print("usage: python serve.py ADDRESS CONFIG", file=sys.stderr)
        return 2
    address, config = arguments
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    token = os.environ.get("RAY_AUTH_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=address, headers=headers, timeout=_PATIENCE) as client:
        wanted = yaml.safe_load(Path(config).read_text())
        try:
            keep(Keeper(client, wanted, lambda said: print(said, flush=True)))
        except NotAccepted as error:
            print(f"{config}: {error}", file=sys.stderr)
            return 1


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    """Out of a request, too: what a signal handler returns from is gone on with."""
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
