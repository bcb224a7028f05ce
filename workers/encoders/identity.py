"""The identity of an encoder, and its fingerprint.

An identity names the files that an encoder loads, their digest, and the settings that decide features. The
fingerprint is its features of generated items, compared with recorded ones: it shows whether the installed
libraries still compute the same with these files and settings.

Shapes: P probe items, F width of the raw feature.
"""

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from cmcl.contract.encoder import (
    OTHER_FILES,
    OTHER_FOLDERS,
    SUFFIXES,
    EncoderIdentity,
    EncoderRecord,
    EncoderSpec,
    ModelFiles,
)
from cmcl.contract.errors import ObjectExists, ObjectNotFound
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from workers.encoders.decoding import IMAGE_DECODING
from workers.encoders.media import Audio, Decoded, Video
from workers.encoders.port import EncoderMismatch, EncoderUnusable, Float32Array, FrozenEncoder

Setting = str | int | float | bool | None

_COMMIT = re.compile(r"[0-9a-f]{40}")

T = TypeVar("T")

LEAST_COSINE = 0.9999
# Another scale leaves the cosine alone; half precision changes lengths by less than this.
_MOST_STRETCH = 0.01


def find_model(spec: EncoderSpec) -> ModelFiles:
    """The folder of the declared model, or its snapshot in the cache of the node; downloaded where declared.

    Raises EncoderUnusable.
    """
    name = spec.model or ""
    if Path(name).is_dir():
        return ModelFiles.in_folder(Path(name))
    if spec.download and not _COMMIT.fullmatch(spec.revision or ""):
        raise EncoderUnusable(
            f"encoder {spec.name!r} downloads {name!r}: revision must be a commit of 40 hexadecimal "
            f"digits, not {spec.revision!r}, which can move"
        )
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name,
            revision=spec.revision,
            local_files_only=not spec.download,
            allow_patterns=[f"*{suffix}" for suffix in sorted(SUFFIXES)],
            ignore_patterns=[
                *(f"{each}/*" for each in sorted(OTHER_FOLDERS)),
                *sorted(OTHER_FILES),
            ],
        )
    except (
        OSError,
        ValueError,
    ) as error:  # neither a folder nor in the cache; the hub does not answer
        hint = "" if spec.download else ", and `download` is off"
        raise EncoderUnusable(
            f"encoder {spec.name!r}: no model {name!r} on this node{hint}"
        ) from error
    return ModelFiles.in_folder(Path(folder), name, revision=Path(folder).name)


def identity_of(
    spec: EncoderSpec,
    *,
    adapter: int,
    files: ModelFiles | None,
    settings: Mapping[str, Setting],
    packages: Iterable[str],
) -> EncoderIdentity:
    """An identity with the declared fields that decide features, and the settings of the kind.

    `adapter`: version of the code around the model. `packages`: those whose versions are recorded.
    """
    declared: dict[str, Setting] = {"dtype": spec.dtype, "normalize": spec.normalize}
    if spec.takes == "image":
        declared["decoding"] = IMAGE_DECODING
    if spec.takes in ("audio", "video"):
        declared |= {"window_seconds": spec.window_seconds, "windows": spec.windows}
    if spec.takes == "video":
        declared["frames"] = spec.frames
    decoders = {"image": ("pillow",), "audio": ("soundfile", "soxr"), "video": ("av",)}
    return EncoderIdentity(
        kind=spec.kind,
        adapter=adapter,
        model=files and files.name,
        revision=files and files.revision,
        files=files and files.digest,
        takes=spec.takes,
        width=spec.width,
        settings={**declared, **settings},
        versions=_versions(["numpy", *decoders.get(spec.takes, ()), *packages]),
    )


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in sorted(set(packages)):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def probe_features(encoder: FrozenEncoder[Any]) -> Float32Array:
    """Return features of the probe items (P × F)."""
    items = [encoder.load(item) for item in encoder.probe_items()]
    step = encoder.spec.max_batch
    parts = [encoder.features(items[at : at + step]) for at in range(0, len(items), step)]
    return np.concatenate(parts)


def _call(function: Callable[[], T]) -> T:
    return function()


def check_or_record(
    encoder: FrozenEncoder[Any],
    store: ObjectStore,
    compute: Callable[[Callable[[], Any]], Any] = _call,
) -> None:
    """Compare an encoder with the stored record of its identity. The first process creates the record.

    `compute` calls the functions that use the encoder, for processes that also use it in other threads.
    Idempotent. Raises EncoderMismatch, StorageUnavailable.
    """
    key = layout.encoder_record(encoder.identity().digest)
    try:
        data = store.read(key)
    except ObjectNotFound:
        record: EncoderRecord = compute(partial(record_of, encoder))
        try:
            store.create(key, record.model_dump_json().encode())
            return
        except ObjectExists:
            data = store.read(key)
    compute(partial(check_record, encoder, parse_record(encoder, data)))


def record_of(encoder: FrozenEncoder[Any]) -> EncoderRecord:
    """Return the record of this encoder."""
    rows_PF = probe_features(encoder)
    probe = base64.b64encode(np.ascontiguousarray(rows_PF, "<f4").tobytes()).decode()
    return EncoderRecord(identity=encoder.identity(), probe=probe)


def parse_record(encoder: FrozenEncoder[Any], data: bytes) -> EncoderRecord:
    """Return the stored record of an encoder. Raises EncoderMismatch if it is damaged."""
    try:
        record = EncoderRecord.model_validate_json(data)
        np.frombuffer(record.probe_bytes, "<f4")
    except ValueError as error:
        digest = encoder.identity().digest
        raise EncoderMismatch(
            f"encoder {encoder.spec.name!r}: its record encoders/{digest}.json is damaged; restore it, or "
            "delete it if the encoder is known to be the right one"
        ) from error
    return record


def check_identity(name: str, identity: EncoderIdentity, expected: EncoderIdentity) -> None:
    """Compare two identities. Raises EncoderMismatch with the first field that differs and both values."""
    if difference := identity.difference(expected):
        raise EncoderMismatch(
            f"encoder {name!r} is not the one that computed the earlier features: {difference}"
        )


def check_record(encoder: FrozenEncoder[Any], record: EncoderRecord) -> None:
    """Compare an encoder with its record. Raises EncoderMismatch if identity or features of probe items differ."""
    name = encoder.spec.name
    check_identity(name, encoder.identity(), record.identity)
    rows_PF = probe_features(encoder)
    recorded = np.frombuffer(record.probe_bytes, "<f4")
    if recorded.size != rows_PF.size:
        raise EncoderMismatch(
            f"encoder {name!r} has {len(rows_PF)} probe items of width {rows_PF.shape[1]}, and its "
            f"record has {recorded.size} numbers"
        )
    pairs = zip(rows_PF, recorded.reshape(rows_PF.shape), strict=True)
    for index, (row_F, recorded_F) in enumerate(pairs):
        if reason := _difference(row_F, recorded_F):
            raise EncoderMismatch(
                f"encoder {name!r} computes other features than those recorded: features of probe "
                f"item {index} have {reason}"
            )


def _difference(row_F: Float32Array, recorded_F: Float32Array) -> str | None:
    length, recorded = (
        float(np.linalg.norm(each.astype(np.float64))) for each in (row_F, recorded_F)
    )
    # `not <=`, so that NaN is a difference.
    if not abs(length - recorded) <= _MOST_STRETCH * recorded:
        return f"length {length:.4g}, {recorded:.4g} expected"
    if recorded == 0:
        return None
    cosine = float(row_F.astype(np.float64) @ recorded_F / (length * recorded))
    if not cosine >= LEAST_COSINE:
        return f"cosine {cosine:.4f}, at least {LEAST_COSINE} expected"
    return None


# Generated items, whose features are the fingerprint of an encoder.
_TEXTS = (
    "a",
    "A red chair stands beside a blue table.",
    "the river floods the town",
    "Zürich, São Paulo, Ελλάδα, Київ, 東京, القاهرة 🙂",
    "3.14159 + 2.71828 = 5.85987; x[i] != None",
    "UPPER CASE, lower case, and\ttabs\nin two lines",
    "word " * 100,
    "The quick brown fox jumps over the lazy dog. " * 40,
)
_NUMBERS = (
    (0.0, 0.0),
    (48.8566, 2.3522),
    (-33.8688, 151.2093),
    (40.7128, -74.006),
    (35.6762, 139.6503),
    (-54.8019, -68.303),
    (78.2232, 15.6267),
    (1.3521, 103.8198),
)
_SIZES = ((64, 64), (96, 64), (64, 96), (224, 224), (300, 200), (200, 300), (33, 57), (400, 400))


def generated_items(spec: EncoderSpec) -> list[Decoded]:
    """Return eight items of the kind that the encoder takes, the same on every machine and in every release."""
    if spec.takes == "text":
        return list(_TEXTS)
    if spec.takes == "numbers":
        return list(_NUMBERS)
    if spec.takes == "image":
        return [Image.fromarray(_picture(index, *size)) for index, size in enumerate(_SIZES)]
    if spec.takes == "audio":
        return [_sound(spec, index) for index in range(8)]
    return [_clip(spec, index) for index in range(8)]


def _picture(index: int, width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Draw gradients, a disc, stripes and noise in changing colours, in whole numbers."""
    y, x = np.mgrid[:height, :width]
    red = (x * 255 // width + index * 32) % 256
    green = ((x // (4 + index) + y // (4 + index)) % 2) * 255
    disc = (2 * x - width) ** 2 + (2 * y - height) ** 2 < min(width, height) ** 2 // (1 + index % 3)
    blue = np.where(disc, 230 - index * 20, y * 255 // height)
    picture = np.stack([red, green, blue], axis=-1)
    if index % 2:
        # The only generator of NumPy that is guaranteed to keep its stream.
        picture = (picture + np.random.RandomState(index).randint(0, 64, picture.shape)) % 256
    return picture.astype(np.uint8)


def _sound(spec: EncoderSpec, index: int) -> Audio:
    """Return chords and noise, as long as a window, at several rates."""
    rate = (16_000, 22_050, 44_100, 48_000)[index % 4]
    longest = spec.window_seconds or min(4.0, spec.max_seconds)
    samples = max(1, int(rate * min(longest, (0.5, 1.0, 2.0, 4.0, 1.5, 3.0, 8.0, 30.0)[index])))
    windows = spec.windows if samples == int(rate * longest) and spec.window_seconds else 1
    time_N = np.arange(samples) / rate
    noise = np.random.RandomState(index)
    rows = [
        0.3 * np.sin(2 * np.pi * 110 * (1 + index + window) * time_N)
        + 0.2 * np.sin(2 * np.pi * 233 * (1 + index) * time_N)
        + 0.05 * (index % 3) * noise.standard_normal(samples)
        for window in range(windows)
    ]
    return Audio(np.stack(rows).astype(np.float32), rate)


def _clip(spec: EncoderSpec, index: int) -> Video:
    """Return a video of a moving picture."""
    width, height = ((96, 64), (64, 64), (64, 96), (128, 96))[index % 4]
    picture = _picture(index, width, height)
    frames = [
        [
            np.roll(picture, (index + 1) * (4 * window + frame), axis=1)
            for frame in range(spec.frames)
        ]
        for window in range(spec.windows)
    ]
    seconds = np.arange(spec.windows * spec.frames, dtype=np.float64) / 4
    return Video(np.array(frames, np.uint8), seconds.reshape(spec.windows, spec.frames))
