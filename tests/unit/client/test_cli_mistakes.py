"""Mistakes on the command line that no server has to see: each gets an answer in words."""

from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cmcl.cli import app
from cmcl.client import CmclError
from cmcl.demo.run import DemoError, DemoOptions, run_demo
from tests.conftest import EXAMPLE_STREAM


@pytest.mark.parametrize("text", ["not json", "5", '{"a": 1}', "[[1.0], 2.0]", "\udcff", None])
def test_a_file_that_holds_no_features_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "features.json"
    if text is not None:
        path.write_bytes(text.encode(errors="surrogateescape"))
    ended = CliRunner().invoke(app, ["embed", "scenes", "image", str(path)])
    assert isinstance(ended.exception, CmclError)
    assert str(path) in str(ended.exception)


@pytest.mark.parametrize("text", ["image", "image=", "image=wide", "image=\u00b2", "image=-1"])
def test_a_modality_without_a_width_is_named(text: str) -> None:
    ended = CliRunner().invoke(app, ["model", "create", "scenes", "--modality", text])
    assert isinstance(ended.exception, CmclError)
    assert "write NAME=WIDTH" in str(ended.exception)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
def test_a_port_that_cannot_be_is_refused(port: str) -> None:
    ended = CliRunner().invoke(app, ["up", f"--port={port}"])
    assert ended.exit_code == 2
    assert "--port" in ended.output


def test_the_demo_empties_no_folder_but_its_own(tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("dear")
    with pytest.raises(DemoError, match="was not made by an earlier demo"):
        run_demo(DemoOptions(EXAMPLE_STREAM, tmp_path), Console(quiet=True))
    assert letter.read_text() == "dear"
