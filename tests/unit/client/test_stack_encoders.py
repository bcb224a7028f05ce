"""Encoders of a local stack: checked before anything starts, and the same for all parts."""

from pathlib import Path

import pytest

from cmcl.cli import main
from cmcl.cli.errors import Exit
from cmcl.contract.encoder import EncoderSpec, parse_encoder
from cmcl.stack_host import Ports
from service.core.settings import Settings
from tests.unit.client.recording_stack import RecordingStack


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ("words=minilm", "not of the form NAME=KIND:TAKES:WIDTH"),
        ("words=synthetic:smell:384", "takes: Input should be 'text', 'image'"),
        ("words=synthetic:text:wide", "width: Input should be a valid integer"),
        ("words=sentence-transformers:text:384", "needs a model: a folder or a name"),
        ("images=synthetic:image:64", "encoder 'images' is declared twice"),
    ],
)
def test_an_invalid_encoder_is_rejected_before_anything_starts(
    tmp_path: Path,
    encoder: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    folder = tmp_path / "up"
    good = "--encoder=images=synthetic:image:64"
    assert main(["up", f"--folder={folder}", good, f"--encoder={encoder}"]) == Exit.USAGE
    assert words in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("{}", "the file: Input should be a valid"),
        ('[{"name": "words", "kind": "synthetic", "takes": "text"}]', "0.width: Field required"),
    ],
)
def test_a_file_of_encoders_that_cannot_be_read_is_rejected_before_anything_starts(
    tmp_path: Path,
    content: str | None,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    path, folder = tmp_path / "encoders.json", tmp_path / "up"
    if content is not None:
        path.write_text(content)
    assert main(["up", f"--folder={folder}", f"--encoders={path}"]) == Exit.USAGE
    assert words in capsys.readouterr().err
    assert not folder.exists()


WORDS = parse_encoder("words=synthetic:text:8")
LARGE = EncoderSpec(
    name="large", kind="synthetic", takes="image", width=8, num_cpus=1.5, replicas=2, actors=3
)


def test_one_declaration_of_encoders_reaches_the_control_plane_and_the_endpoint(
    tmp_path: Path,
) -> None:
    stack = RecordingStack(tmp_path, Ports.free(), encoders=(WORDS, LARGE))
    stack.prepare_folder()
    stack.start_service()
    (value,) = (
        each.partition("=")[2] for each in stack.arguments if each.startswith("CMCL_ENCODERS=")
    )
    assert Settings(encoders=value).encoders == (WORDS, LARGE)
    stack.start_embeddings()
    options = [each for each in stack.arguments if each.startswith("--encoder=")]
    assert [parse_encoder(each.partition("=")[2]) for each in options] == [WORDS, LARGE]
    stack.stop()


def test_ray_has_cpus_for_all_processes_of_all_encoders(tmp_path: Path) -> None:
    """Two of the endpoint for each replica, as an update starts the new ones first; and those of preparation."""
    plain = RecordingStack(tmp_path, Ports.free())
    stack = RecordingStack(tmp_path, Ports.free(), encoders=(WORDS, LARGE))
    assert stack.ray_cpus - plain.ray_cpus == 3 + 1.5 * (2 * 2 + 3) + 0.5  # rounded up
    stack.start_ray()
    assert f"--num-cpus={stack.ray_cpus}" in stack.arguments
    for each in (plain, stack):
        each.stop()
