"""Features are those of the libraries' own code, and nothing of an item is fetched, opened or run."""

import io
import json
import socket
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from cmcl.contract.encoder import EncoderSpec
from tests.fakes.encoder_cases import (
    CASES,
    CLAP,
    CLIP_IMAGE,
    CLIP_TEXT,
    EXAMPLES,
    MINILM,
    MINILM_MEAN,
    RAW,
    WHISPER,
    Folders,
    features,
    picture,
    sound,
)
from tests.unit.encoders.conftest import Loaded
from workers.encoders.media import Audio
from workers.encoders.port import EncoderUnusable

# Of the libraries of some kinds, on import.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script:FutureWarning", "ignore:.torch.jit.script:DeprecationWarning"
)


def test_synthetic_features_have_unit_variance_and_stay_the_same(loaded: Loaded) -> None:
    encoder = loaded(EncoderSpec(name="x", kind="synthetic", takes="text", width=10_000))
    row = features(encoder, "a red chair")[0]
    assert abs(row.mean()) < 0.05
    assert abs(row.var() - 1) < 0.05
    # Written down once: stored vectors must match those of the next release.
    np.testing.assert_allclose(row[:3], [1.551129, -0.258986, 0.114671], rtol=1e-5)


def test_similar_sentences_have_similar_features(loaded: Loaded) -> None:
    encoder = loaded(MINILM)
    chair, seat, river = features(encoder, "a red chair", "a seat of red wood", "the river floods")
    assert chair @ seat > chair @ river + 0.3


def test_mean_pooling_of_transformers_is_that_of_sentence_transformers(
    folders: Folders, loaded: Loaded
) -> None:
    ours = loaded(MINILM_MEAN.spec(folders, max_tokens=256))
    theirs = loaded(MINILM)
    texts = ["a red chair", "the river floods the town in spring", "chair " * 400]
    np.testing.assert_allclose(features(ours, *texts), features(theirs, *texts), atol=1e-5)


def test_clip_features_are_those_of_its_own_methods(folders: Folders, loaded: Loaded) -> None:
    import torch
    from transformers import AutoProcessor, CLIPModel

    folder = folders("clip")
    model, processor = CLIPModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    image = Image.open(io.BytesIO(picture(2))).convert("RGB")
    with torch.inference_mode():
        texts = model.get_text_features(
            **processor(text=["two chairs"], return_tensors="pt")
        ).pooler_output
        images = model.get_image_features(
            **processor(images=image, return_tensors="pt")
        ).pooler_output
    for kind in ("transformers", "sentence-transformers"):
        plain = {"kind": kind} if kind == "transformers" else {"kind": kind, "method": None}
        text = loaded(CLIP_TEXT.spec(folders, **plain))
        np.testing.assert_allclose(features(text, "two chairs"), texts.numpy(), atol=1e-5)
        of_image = loaded(CLIP_IMAGE.spec(folders, **plain))
        np.testing.assert_allclose(features(of_image, picture(2)), images.numpy(), atol=1e-5)


def test_clap_features_are_those_of_its_own_method_at_its_rate(
    folders: Folders, loaded: Loaded
) -> None:
    import soxr
    import torch
    from transformers import AutoFeatureExtractor, ClapModel

    folder = folders("clap")
    model, extractor = (
        ClapModel.from_pretrained(folder),
        AutoFeatureExtractor.from_pretrained(folder),
    )
    samples, rate = soundfile.read(io.BytesIO(sound(2)), dtype="float32")
    window = rate // 2
    starts = (0, (len(samples) - window) // 2, len(samples) - window)
    rows = []
    for start in starts:
        part = soxr.resample(samples[start : start + window], rate, 48_000)
        inputs = extractor(part, sampling_rate=48_000, return_tensors="pt")
        with torch.inference_mode():
            rows.append(model.get_audio_features(**inputs).pooler_output[0].numpy())
    ours = features(loaded(CLAP.spec(folders)), sound(2))[0]
    np.testing.assert_allclose(ours, np.mean(rows, axis=0), atol=1e-5)


def test_whisper_is_averaged_over_the_sound_and_not_over_its_padding(
    folders: Folders, loaded: Loaded
) -> None:
    import soxr
    import torch
    from transformers import AutoFeatureExtractor, WhisperModel

    folder = folders("whisper")
    encoder = WhisperModel.from_pretrained(folder).encoder
    samples, rate = soundfile.read(io.BytesIO(sound(1)), dtype="float32")
    inputs = AutoFeatureExtractor.from_pretrained(folder)(
        soxr.resample(samples, rate, 16_000), sampling_rate=16_000, return_tensors="pt"
    )
    with torch.inference_mode():
        hidden = encoder(inputs["input_features"]).last_hidden_state[0]
    whole = WHISPER.spec(folders, window_seconds=10.0, windows=1)
    seconds = len(samples) / rate
    expected = hidden[: int(np.ceil(seconds * 50))].mean(0).numpy()  # 50 positions a second
    np.testing.assert_allclose(features(loaded(whole), sound(1))[0], expected, atol=1e-3)


def test_normalize_scales_the_mean_of_windows_to_unit_length(
    folders: Folders, loaded: Loaded
) -> None:
    plain = features(loaded(CLAP.spec(folders)), *RAW["audio"])
    scaled = features(loaded(CLAP.spec(folders, normalize=True)), *RAW["audio"])
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), 1, rtol=1e-6)
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(scaled, plain / lengths, atol=1e-6)


def test_tokens_beyond_the_bound_are_cut_off(folders: Folders, loaded: Loaded) -> None:
    for spec in (MINILM, MINILM_MEAN.spec(folders)):
        encoder = loaded(spec.model_copy(update={"max_tokens": 8}))
        long = features(encoder, "a red chair " * 10)
        longer = features(encoder, "a red chair " * 10 + "and a river that floods the town")
        np.testing.assert_array_equal(long, longer)


def test_texts_that_look_like_addresses_are_never_fetched(folders: Folders, loaded: Loaded) -> None:
    encoder = loaded(CASES["st-clip-text"].spec(folders))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        features(encoder, f"http://127.0.0.1:{server.getsockname()[1]}/a.png")
        with pytest.raises(TimeoutError):
            server.accept()


def test_texts_that_look_like_paths_are_never_opened(
    folders: Folders, loaded: Loaded, tmp_path: Path
) -> None:
    encoder = loaded(CASES["st-clip-text"].spec(folders))
    path = tmp_path / "secret.png"
    as_text = features(encoder, str(path))
    path.write_bytes(picture(4))
    np.testing.assert_array_equal(features(encoder, str(path)), as_text)


def test_places_near_each_other_are_alike(folders: Folders, loaded: Loaded) -> None:
    encoder = loaded(CASES["example-location"].spec(folders, normalize=True))
    paris, suburb, london = features(encoder, [48.86, 2.35], [48.86, 2.36], [51.51, -0.13])
    assert paris @ suburb > paris @ london + 0.3
    with pytest.raises(ValueError, match=r"\[91, 0\] is no place"):
        features(encoder, [91.0, 0.0])
    with pytest.raises(ValueError, match=r"takes \[latitude, longitude\]"):
        features(encoder, [1.0, 2.0, 3.0])


def test_an_image_encoder_takes_extreme_proportions(folders: Folders, loaded: Loaded) -> None:
    encoder = loaded(CASES["example-image"].spec(folders))
    for size in ((1, 1), (5000, 1), (1, 5000)):
        file = io.BytesIO()
        Image.new("RGB", size, "red").save(file, "PNG")
        assert np.isfinite(features(encoder, file.getvalue())).all()


def test_a_package_of_examples_names_a_kind_for_each_declared_encoder() -> None:
    package = tomllib.loads((EXAMPLES / "pyproject.toml").read_text())["project"]
    kinds = package["entry-points"]["cmcl.encoders"].values()
    declared = json.loads((EXAMPLES / "encoders.json").read_text())
    assert sorted(kinds) == sorted(each["kind"] for each in declared)


def test_speech_of_any_length_has_a_feature_of_its_own(folders: Folders, loaded: Loaded) -> None:
    encoder = loaded(CASES["example-speech"].spec(folders, window_seconds=None, windows=1))
    time_N = np.arange(48_000) / 16_000
    low, high = (
        np.sin(2 * np.pi * pitch * (1 + time_N) * time_N).astype(np.float32) for pitch in (90, 400)
    )
    long, rest = np.concatenate([low, low, high]), high[:1]
    rows_BF = encoder.features(
        [encoder.load(Audio(each[None], 16_000)) for each in (low, high, long, rest)]
    )
    assert np.isfinite(rows_BF).all()
    assert len(np.unique(rows_BF.round(2), axis=0)) == 4
    # Of the first parts of both recordings, the means are the same.
    distances = np.linalg.norm(rows_BF[2] - rows_BF[:2], axis=1)
    assert distances[0] < distances[1]


def test_the_example_file_declares_encoders_that_load(loaded: Loaded) -> None:
    declared = json.loads((EXAMPLES / "encoders.json").read_text())
    for each in declared:
        spec = EncoderSpec.model_validate(each)
        assert loaded(spec).identity().width == spec.width


def test_weights_that_are_missing_are_refused_and_not_drawn_at_random(
    folders: Folders, loaded: Loaded, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    source = folders("dino")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    weights = load_file(source / "model.safetensors")
    weights.pop("layernorm.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderUnusable, match=r"the weights of .* lack layernorm.weight"):
        loaded(CASES["dino-cls"].spec(folders, model=str(tmp_path)))


def test_code_in_a_models_folder_never_runs(
    folders: Folders, loaded: Loaded, tmp_path: Path
) -> None:
    source, mark = folders("dino"), tmp_path / "mark"
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: pass\n")
    for kind in ("transformers", "sentence-transformers"):
        with pytest.raises(EncoderUnusable, match=r"trust_remote_code|custom code"):
            loaded(CASES["st-clip-image"].spec(folders, kind=kind, model=str(tmp_path)))
    assert not mark.exists()
