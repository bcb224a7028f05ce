"""The command line in this process, for tests."""

import json
from typing import Any

import pytest

from cmcl.cli import main


class Cmcl:
    """Runs `cmcl` in this process, checks its exit code and returns its output."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        # Output of the last run.
        self.stderr = ""

    def __call__(self, *arguments: str, code: int = 0) -> str:
        ended = main(list(arguments))
        shown = self._capsys.readouterr()
        self.stderr = shown.err
        assert ended == code, shown
        assert "Traceback" not in shown.err
        return shown.out if code == 0 else shown.err

    def lines(self, *arguments: str) -> list[Any]:
        """Run with --json and return all documents of stdout."""
        return [json.loads(line) for line in self(*arguments, "--json").splitlines()]

    def one(self, *arguments: str) -> Any:
        """Run with --json and return the only document of stdout."""
        (document,) = self.lines(*arguments)
        return document
