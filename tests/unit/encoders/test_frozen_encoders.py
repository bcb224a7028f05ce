"""Contract of every encoder: built in, from examples, and what makes one another encoder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes.encoder_cases import (
    CASES,
    CLAP,
    CLIP_IMAGE,
    MINILM_MEAN,
    RAW,
    Case,
    Folders,
    features,
)
from tests.unit.encoders.conftest import Loaded
from workers.encoders.identity import check_record, record_of
from workers.encoders.media import Raw
from workers.encoders.port import EncoderMismatch, EncoderUnusable, FrozenEncoder, load_encoder

Encoder = FrozenEncoder[Any]
# Of the libraries of some kinds, on import.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script:FutureWarning", "ignore:.torch.jit.script:DeprecationWarning"
)


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, loaded: Loaded, folders: Folders
) -> tuple[Encoder, Sequence[Raw]]:
    """An encoder and some items for it."""
    case = CASES[request.param]
    return loaded(case.spec(folders)), RAW[case.takes]


def test_features_are_finite_float32_rows(case: tuple[Encoder, Sequence[Raw]]) -> None:
    encoder, raw = case
    rows = features(encoder, *raw)
    assert rows.dtype == np.float32
    assert rows.shape == (len(raw), encoder.spec.width)
    assert np.isfinite(rows).all()
    assert rows.flags.c_contiguous


def test_a_row_depends_on_its_item_and_on_no_other_row(case: tuple[Encoder, Sequence[Raw]]) -> None:
    encoder, raw = case
    together = features(encoder, *raw)
    alone = [features(encoder, each) for each in raw]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(features(encoder, raw[0]), alone[0])
    assert np.abs(together[0] - together[1]).max() > 1e-4


def test_a_text_at_the_default_limit_is_embedded_and_a_longer_one_is_refused(
    case: tuple[Encoder, Sequence[Raw]],
) -> None:
    encoder, _ = case
    if encoder.spec.takes != "text":
        assert encoder.spec.max_item_bytes == 8 << 20
        return
    assert np.isfinite(features(encoder, "a b " * (16 << 10))).all()
    with pytest.raises(ValueError, match="has 65537 bytes or more; permitted are 65536"):
        features(encoder, "a b " * (16 << 10) + "a")


# One encoder of each kind and model.
KINDS = {(case.kind, case.model): name for name, case in reversed(CASES.items())}


@pytest.mark.parametrize("name", KINDS.values())
def test_a_second_load_has_the_identity_and_fingerprint_of_the_first(
    name: str, loaded: Loaded, folders: Folders
) -> None:
    encoder = loaded(CASES[name].spec(folders))
    record = record_of(encoder)
    again = load_encoder(encoder.spec.model_copy(update={"max_batch": 3, "name": "y"}))
    assert again.identity() == encoder.identity()
    check_record(again, record)


@pytest.mark.parametrize(
    ("case", "changes", "differs"),
    [
        (MINILM_MEAN, {"pooling": "cls"}, "pooling"),
        (MINILM_MEAN, {"max_tokens": 16}, "max_tokens"),
        (MINILM_MEAN, {"normalize": False}, "normalize"),
        (CASES["minilm"], {"max_tokens": 16}, "max_tokens"),
        (CLAP, {"windows": 2}, "windows"),
        (CLAP, {"window_seconds": 0.25}, "window_seconds"),
        (MINILM_MEAN, {"max_batch": 2, "num_cpus": 2, "actors": 2, "max_tokens": 512}, None),
        (CLAP, {"max_batch": 1, "max_seconds": 9.0}, None),
    ],
)
def test_the_identity_has_what_decides_features_and_nothing_else(
    case: Case,
    changes: dict[str, object],
    differs: str | None,
    folders: Folders,
    loaded: Loaded,
) -> None:
    before = loaded(case.spec(folders)).identity()
    after = loaded(case.spec(folders, **changes)).identity()
    difference = after.difference(before)
    assert (difference and difference.partition(" ")[0]) == differs


@pytest.mark.parametrize("case", [CASES["st-clip-image"], CLIP_IMAGE, CASES["open-clip-image"]])
def test_another_encoder_of_equal_width_is_refused_in_words(
    case: Case, folders: Folders, tmp_path: Path, loaded: Loaded
) -> None:
    """One byte of its weights differs."""
    record = record_of(loaded(case.spec(folders)))
    source = folders(str(case.model))
    copied = tmp_path / source.name
    copied.mkdir()
    for path in source.iterdir():
        os.link(path, copied / path.name)
    weights = next(copied.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    other = load_encoder(case.spec(folders, model=str(copied)))
    assert other.identity().width == record.identity.width
    reason = f"encoder 'x' is not the one .* files is '[0-9a-f]{{64}}', expected '{record.identity.files}'"
    with pytest.raises(EncoderMismatch, match=reason):
        check_record(other, record)


@pytest.mark.parametrize(
    ("case", "fields", "complaint"),
    [
        ("minilm", {"width": 383}, "has width 383, but the features of .* have 384"),
        ("minilm", {"takes": "image"}, "is declared for image, but .* takes text"),
        (
            "minilm",
            {"model": "/nowhere/minilm"},
            "no model '/nowhere/minilm' on this node, and `download` is off",
        ),
        ("minilm", {"model": "someone/nothing"}, "no model 'someone/nothing' on"),
        (
            "minilm",
            {"method": "encode"},
            "sets method, which kind 'sentence-transformers' does not",
        ),
        (
            "st-clap",
            {"window_seconds": None, "windows": 1},
            "takes at most 10 seconds of audio: set",
        ),
        ("clap", {"window_seconds": 10.5}, "takes at most 10 seconds of audio: set window_seconds"),
        ("whisper", {"window_seconds": 31.0}, "takes at most 30 seconds of audio"),
        ("whisper", {"pooling": "pooler"}, "has no pooler_output: set pooling to mean or cls"),
        ("clip-text", {"pooling": "none"}, "has shape .*, not one vector for each item"),
        ("clip-text", {"method": "get_sound"}, "has no method 'get_sound'; it has .*get_text_feat"),
        ("clip-text", {"method": "__init__"}, "has no method '__init__'"),
        ("clip-text", {"takes": "audio", "window_seconds": 1.0}, "cannot load|no sampling rate"),
        ("clip-text", {"takes": "numbers"}, "declared for numbers; kind transformers takes text"),
        ("open-clip-text", {"takes": "audio"}, "kind open-clip takes text, image"),
        ("open-clip-text", {"model": "ViT-B-32"}, "set options.pretrained to the file"),
        (
            "open-clip-text",
            {"model": "nothing"},
            "neither a folder on this node nor an architecture",
        ),
        ("example-image", {"takes": "text"}, "declared for text; it takes images"),
        ("example-location", {"dtype": "float16"}, "has dtype float16; it takes float32"),
        ("example-speech", {"takes": "text"}, "declared for text; it takes audio"),
        ("example-speech", {"dtype": "float16"}, "dtype float16; it takes cpu and float32"),
    ],
)
def test_an_encoder_that_cannot_do_its_work_does_not_start(
    case: str, fields: dict[str, object], complaint: str, loaded: Loaded, folders: Folders
) -> None:
    with pytest.raises(EncoderUnusable, match=complaint):
        loaded(CASES[case].spec(folders, **fields))
