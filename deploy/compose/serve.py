"""Keep the embeddings application deployed on a Ray cluster: `python serve.py ADDRESS CONFIG`, until SIGTERM.

A restarted head has lost its applications. This program polls the served applications every few seconds,
and deploys CONFIG if one of them is missing. An application that failed to deploy, for example because
another part was not ready, is removed first, because Ray ignores an unchanged CONFIG. ADDRESS is that of
Ray's dashboard; the token is in RAY_AUTH_TOKEN. Exit status 1: Ray rejects CONFIG.
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
_TIMEOUT_SECONDS = 60.0


class NotAccepted(Exception):
    """Ray rejected the configuration. The message is Ray's."""


class Keeper:
    """Deploys missing applications. `report` is called with each change of their states."""

    def __init__(
        self, client: httpx.Client, config: dict[str, Any], report: Callable[[str], None]
    ) -> None:
        self._client, self._config, self._report = client, config, report
        self._reported = ""
        self._is_current = False

    def check(self) -> None:
        """Check once, and deploy what is missing. Raises NotAccepted."""
        try:
            status = ", ".join(f"{name} is {state}" for name, state in self._served().items())
        except httpx.HTTPError as error:
            status = f"Ray does not respond: {error}"
        if status != self._reported:
            self._report(status)
        self._reported = status

    def _served(self) -> dict[str, str]:
        """Return the state of each application, after deploying missing ones."""
        states = self._states()
        failed = "DEPLOY_FAILED" in states.values()
        if failed:
            self._client.delete(_APPLICATIONS).raise_for_status()
        # A running application may have an older configuration; Ray compares them.
        if failed or not self._is_current or None in states.values():
            self._deploy()
            self._is_current = True
        return {name: state or "deployed" for name, state in states.items()}

    def _deploy(self) -> None:
        answer = self._client.put(_APPLICATIONS, json=self._config)
        if answer.status_code == httpx.codes.BAD_REQUEST:
            raise NotAccepted(answer.text)
        answer.raise_for_status()

    def _states(self) -> dict[str, str | None]:
        """Return the state of each application; None for a missing one."""
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
    """Call `keeper.look` and `pause` until one of them raises."""
    while True:
        keeper.check()
        pause(_SECONDS)


def main(arguments: Sequence[str]) -> int:
    """Run until SIGTERM, and return the exit status."""
    if len(arguments) != 2:
        print("usage: python serve.py ADDRESS CONFIG", file=sys.stderr)
        return 2
    address, config = arguments
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    token = os.environ.get("RAY_AUTH_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=address, headers=headers, timeout=_TIMEOUT_SECONDS) as client:
        wanted = yaml.safe_load(Path(config).read_text())
        try:
            keep(Keeper(client, wanted, lambda status: print(status, flush=True)))
        except NotAccepted as error:
            print(f"{config}: {error}", file=sys.stderr)
            return 1


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    """Raise, so that a running request is interrupted as well."""
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
