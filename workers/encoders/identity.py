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

from cmcl.contract.encoder import (
    OTHER_FILES,
    OTHER_FOLDERS,
    SUFFIXES,
    EncoderIdentity,
    EncoderRecord,
    EncoderSpec,
    ModelFiles,
)
from cmcl.contract.errors import InvalidVersion, ObjectExists, ObjectNotFound
from cmcl.storage import layout
from cmcl.storage.documents import document, parse_document
from cmcl.storage.object_store import ObjectStore
from workers.encoders.decoding import IMAGE_DECODING
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
            store.create(key, document(record, key))
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
    key = layout.encoder_record(encoder.identity().digest)
    try:
        record = parse_document(data, key, EncoderRecord)
        np.frombuffer(record.probe_bytes, "<f4")
    except (InvalidVersion, ValueError) as error:
        raise EncoderMismatch(
            f"encoder {encoder.spec.name!r}: its record {key} is damaged; restore it, or "
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
