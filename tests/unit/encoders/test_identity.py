"""Which changes make another encoder, and an encoder starts only if it computes what was recorded."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from cmcl.contract.encoder import EncoderIdentity, EncoderRecord, EncoderSpec, Media, ModelFiles
from cmcl.storage import layout
from cmcl.storage.documents import parse_document
from cmcl.storage.local import LocalStore
from workers.encoders.identity import (
    check_identity,
    check_or_record,
    check_record,
    find_model,
    identity_of,
    parse_record,
    probe_features,
    record_of,
)
from workers.encoders.media import Audio, Decoded, Video, generated_items
from workers.encoders.port import (
    EncoderMismatch,
    EncoderUnusable,
    Float32Array,
    FrozenEncoder,
    load_encoder,
)
from workers.encoders.synthetic import SyntheticEncoder

SPEC = EncoderSpec(name="x", kind="transformers", takes="audio", width=4, model="m")

MEDIA = get_args(Media)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"):
        (made / name).write_text(name)
    return made


def digest(folder: Path) -> str:
    return ModelFiles.in_folder(folder).digest


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"]
)
def test_one_byte_of_any_file_that_is_loaded_changes_the_identity(folder: Path, name: str) -> None:
    before = digest(folder)
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    # Of equal size, and within the clock's resolution.
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    assert digest(folder) != before


def test_a_renamed_and_an_added_file_change_the_identity(folder: Path) -> None:
    before = digest(folder)
    (folder / "vocab.txt").write_text("a")
    added = digest(folder)
    (folder / "vocab.txt").rename(folder / "merges.txt")
    assert len({before, added, digest(folder)}) == 3


@pytest.mark.parametrize(
    "name",
    [
        "README.md", ".gitattributes", ".cache/a.json", "onnx/model.json", "openvino/m.bin",
        "training_args.bin", "picture.png", "pytorch_model.bin",
    ],
)  # fmt: skip
def test_files_that_are_not_loaded_do_not_change_the_identity(folder: Path, name: str) -> None:
    before = digest(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("a")
    assert digest(folder) == before


def test_pickled_weights_count_where_there_are_no_others(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    before = digest(folder)
    (folder / "pytorch_model.bin").write_text("a")
    assert digest(folder) != before


def test_the_place_of_the_folder_does_not_count(folder: Path, tmp_path: Path) -> None:
    before = ModelFiles.in_folder(folder)
    (tmp_path / "elsewhere").mkdir()
    moved = folder.rename(tmp_path / "elsewhere" / "model")
    after = ModelFiles.in_folder(moved)
    assert (after.name, after.digest) == (before.name, before.digest)


@pytest.mark.parametrize(
    ("fields", "differs"),
    [
        ({"width": 5}, True),
        ({"takes": "video"}, True),
        ({"kind": "open-clip"}, True),
        ({"normalize": True}, True),
        ({"dtype": "float16"}, True),
        ({"window_seconds": 2.0}, True),
        ({"windows": 2}, True),
        ({"name": "y"}, False),
        ({"device": "cpu"}, False),
        ({"max_batch": 2}, False),
        ({"num_cpus": 4}, False),
        ({"actors": 4, "replicas": 4}, False),
        ({"max_seconds": 5.0, "max_item_bytes": 5, "max_pixels": 5}, False),
        ({"frames": 4}, False),  # of video only
    ],
)
def test_what_decides_features_is_in_the_identity(fields: dict[str, object], differs: bool) -> None:
    def identity(spec: EncoderSpec) -> str:
        return identity_of(
            spec, adapter=1, files=None, settings={}, packages=("numpy", "nothing")
        ).digest

    other = EncoderSpec.model_validate({**SPEC.model_dump(), **fields})
    assert (identity(other) != identity(SPEC)) is differs


def test_features_of_images_that_were_decoded_by_another_rule_are_not_mixed() -> None:
    identity = load_encoder(spec_of("image")).identity()
    settings = {name: value for name, value in identity.settings.items() if name != "decoding"}
    earlier = identity.model_copy(update={"settings": settings})
    with pytest.raises(EncoderMismatch, match="decoding is 1, expected None"):
        check_identity("x", identity, earlier)


def test_versions_of_libraries_are_recorded_and_do_not_count() -> None:
    identity = identity_of(SPEC, adapter=1, files=None, settings={}, packages=("torch", "nothing"))
    assert set(identity.versions) == {"numpy", "soundfile", "soxr", "torch"}
    assert identity.model_copy(update={"versions": {}}).digest == identity.digest


def test_a_model_that_is_not_on_the_node_is_not_downloaded() -> None:
    spec = SPEC.model_copy(update={"model": "someone/nothing"})
    with pytest.raises(EncoderUnusable, match="no model 'someone/nothing' on this node, and"):
        find_model(spec)


def test_a_download_needs_a_commit() -> None:
    spec = SPEC.model_copy(
        update={"model": "someone/nothing", "download": True, "revision": "main"}
    )
    with pytest.raises(EncoderUnusable, match=r"revision must be a commit .* not 'main'"):
        find_model(spec)


def test_a_cached_model_is_identified_by_its_commit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "cache" / "models--someone--model"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    (cache / "snapshots").mkdir()
    folder.rename(cache / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    files = find_model(SPEC.model_copy(update={"model": "someone/model"}))
    assert (files.name, files.revision) == ("someone/model", commit)
    assert files.digest == digest(cache / "snapshots" / commit)


def spec_of(takes: Media, **fields: object) -> EncoderSpec:
    spec = {"name": "x", "kind": "synthetic", "takes": takes, "width": 16, **fields}
    return EncoderSpec.model_validate(spec)


def content(item: Decoded) -> object:
    if isinstance(item, Image.Image):
        return item.size, item.tobytes()
    if isinstance(item, Audio):
        return item.rate, item.samples_WN.tobytes()
    return item.frames_WTYXC.tobytes() if isinstance(item, Video) else item


class Bent(SyntheticEncoder):
    """The synthetic encoder with other features: a library that computes something else."""

    def __init__(self, spec: EncoderSpec, factor: float = 1, noise: float = 0) -> None:
        super().__init__(spec)
        self._factor, self._noise = factor, noise

    def features(self, items: Sequence[bytes]) -> Float32Array:
        rows = super().features(items)
        draws = np.random.default_rng(0).standard_normal(rows.shape)
        return (self._factor * (rows + self._noise * draws)).astype(np.float32)


@pytest.mark.parametrize("takes", MEDIA)
def test_there_are_eight_different_items_and_always_the_same(takes: Media) -> None:
    first, again = (list(map(content, generated_items(spec_of(takes)))) for _ in range(2))
    assert len(first) == 8
    assert len(set(first)) == 8
    assert first == again


def test_windows_and_frames_are_those_of_the_declaration() -> None:
    fields = {"window_seconds": 1.0, "windows": 3, "frames": 5}
    sounds = generated_items(spec_of("audio", **fields))
    windows = [sound.samples_WN.shape[0] for sound in sounds if isinstance(sound, Audio)]
    assert set(windows) == {1, 3}
    for clip in generated_items(spec_of("video", **fields)):
        assert isinstance(clip, Video)
        assert clip.frames_WTYXC.shape[:2] == clip.seconds_WT.shape == (3, 5)


def test_rounding_is_no_mismatch() -> None:
    record = record_of(SyntheticEncoder(spec_of("text")))
    check_record(Bent(spec_of("text"), noise=1e-3), record)


@pytest.mark.parametrize(
    ("bent", "reason"),
    [
        ({"noise": 0.1}, r"features of probe item \d have (cosine 0.9|length)"),
        ({"factor": -1}, r"probe item 0 have cosine -1.0000, at least 0.9999 expected"),
        ({"factor": 2}, r"probe item 0 have length 9.054, 4.527 expected"),
        ({"factor": float("nan")}, r"probe item 0 have length nan"),
    ],
)
def test_other_features_are_refused_in_words(bent: dict[str, float], reason: str) -> None:
    record = record_of(SyntheticEncoder(spec_of("text")))
    with pytest.raises(EncoderMismatch, match=f"'x' computes other features .*{reason}"):
        check_record(Bent(spec_of("text"), **bent), record)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"normalize": True}, "normalize is True, expected False"),
        ({"width": 8}, "width is 8, expected 16"),
        ({"takes": "image"}, "takes is 'image', expected 'text'"),
    ],
)
def test_another_identity_is_refused_with_field_and_values(
    fields: dict[str, object], reason: str
) -> None:
    record = record_of(SyntheticEncoder(spec_of("text")))
    other = spec_of("text").model_copy(update=fields)
    with pytest.raises(EncoderMismatch, match=f"'x' is not the one .*: {reason}"):
        check_record(SyntheticEncoder(other), record)


def test_a_record_of_another_size_is_refused() -> None:
    encoder = SyntheticEncoder(spec_of("text"))
    record = EncoderRecord(identity=encoder.identity(), probe="AAAAAA==")
    with pytest.raises(EncoderMismatch, match="its record has 1 numbers"):
        check_record(encoder, record)


def test_a_plug_in_can_define_its_probe_items() -> None:
    class Sum(FrozenEncoder[Any]):
        def identity(self) -> EncoderIdentity:
            return SyntheticEncoder(self.spec).identity()

        def load(self, decoded: Decoded) -> object:
            return decoded

        def features(self, items: Sequence[Any]) -> Float32Array:
            return np.array([[sum(item)] for item in items], np.float32)

        def probe_items(self) -> list[Decoded]:
            return [(1.0, 2.0, 3.0), (4.0,)]

    assert probe_features(Sum(spec_of("numbers", width=1))).tolist() == [[6], [4]]


@pytest.mark.parametrize("damage", ["cut", "not base64", "not whole numbers"])
def test_a_damaged_record_is_a_mismatch_that_names_it(damage: str) -> None:
    encoder = SyntheticEncoder(spec_of("text"))
    record = record_of(encoder)
    broken = {"not base64": "a", "not whole numbers": "AAAA"}.get(damage, record.probe)
    data = record.model_copy(update={"probe": broken}).model_dump_json().encode()
    with pytest.raises(
        EncoderMismatch, match=rf"encoders/{encoder.identity().digest}\.json is damaged"
    ):
        parse_record(encoder, data[:-9] if damage == "cut" else data)
    assert parse_record(encoder, record.model_dump_json().encode()) == record


def test_the_first_process_records_an_encoder_and_the_others_compare(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    encoder = SyntheticEncoder(spec_of("text"))
    key = layout.encoder_record(encoder.identity().digest)
    check_or_record(encoder, store)
    recorded = store.read(key)
    assert parse_document(recorded, key, EncoderRecord) == record_of(encoder)
    check_or_record(encoder, store)
    with pytest.raises(EncoderMismatch, match="computes other features"):
        check_or_record(Bent(spec_of("text"), noise=0.1), store)
    assert store.read(key) == recorded


def test_a_process_that_loses_the_race_for_the_record_is_compared_with_it(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)

    def compute(function: Callable[[], Any]) -> Any:
        result = function()
        if isinstance(result, EncoderRecord):
            # Another process was faster.
            check_or_record(SyntheticEncoder(spec_of("text")), store)
        return result

    with pytest.raises(EncoderMismatch, match="computes other features"):
        check_or_record(Bent(spec_of("text"), noise=0.1), store, compute)
