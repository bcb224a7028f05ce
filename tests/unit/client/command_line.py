"""The command line in this process, for tests."""

import json
from typing import Any

import pytest

from cmcl.cli import main


class Cmcl:
    """`cmcl` in this process: its exit code is checked, its output answered."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        ended = main(list(arguments))
        shown = self._capsys.readouterr()
        assert ended == code, shown
        assert "Traceback" not in shown.err
        return shown.out if code == 0 else shown.err

    def lines(self, *arguments: str) -> list[Any]:
        """With --json: everything on stdout, as documents."""
        return [json.loads(line) for line in self(*arguments, "--json").splitlines()]

    def one(self, *arguments: str) -> Any:
        """With --json: the one document on stdout."""
        (document,) = self.lines(*arguments)
        return document
