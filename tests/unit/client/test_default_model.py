"""CMCL_MODEL in place of MODEL, before other arguments."""

import pytest

from cmcl.cli.errors import Exit
from tests.unit.client.command_line import Cmcl


@pytest.fixture(autouse=True)
def default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMCL_MODEL", "scenes")


@pytest.mark.parametrize("one", [["1"], ["scenes", "1"], ["scenes@1"]], ids="-".join)
def test_a_version_is_named_with_and_without_its_model(cmcl: Cmcl, one: list[str]) -> None:
    assert cmcl.one("version", "show", *one)["version"] == 1
    assert "scenes: version 1 is live" in cmcl("promote", *one)
    cmcl("rollback")
    assert "branch continues version 1 of scenes" in cmcl("model", "branch", *one, "branch")
    cmcl("version", "retire", *one, "--yes")
    assert cmcl.lines("version", "list")[0]["retired_at"]


def test_a_model_named_like_a_number_is_not_taken_for_a_version(
    cmcl: Cmcl, monkeypatch: pytest.MonkeyPatch
) -> None:
    cmcl("model", "branch", "1", "2")
    monkeypatch.setenv("CMCL_MODEL", "2")
    assert cmcl.one("version", "show")["version"] == 1
    assert cmcl.one("version", "show", "2")["version"] == 1
    assert cmcl.one("version", "show", "1")["version"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["promote"], "the version of 'scenes' is missing"),
        (["promote", "0"], "numbered from 1"),
        (["model", "add-modality", "scenes"], "write NAME=WIDTH"),
    ],
)
def test_what_is_missing_is_named(cmcl: Cmcl, arguments: list[str], words: str) -> None:
    assert words in cmcl(*arguments, code=Exit.USAGE)


def test_without_the_variable_a_model_is_required(
    cmcl: Cmcl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CMCL_MODEL")
    assert "set CMCL_MODEL" in cmcl("model", "add-modality", "depth=5", code=Exit.USAGE)
    assert "the version of '1' is missing" in cmcl("promote", "1", code=Exit.USAGE)
