"""Served versions, made without a store or loaded outside of a replica."""

from datetime import UTC, datetime

import numpy as np

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.storage.object_store import ObjectStore
from tests.fakes.versions import random_heads
from workers.model.heads import ModalityHeads
from workers.serve.versions.loading import (
    Float32Array,
    LoadedHeads,
    Reservation,
    ServedVersion,
    StoredVersions,
    described,
)

PAIRS = frozenset({ModalityPair(first="image", second="text")})
SPEC = ModelSpec(width=6, modalities={"image": 5, "text": 4})


def version(
    number: int, heads: ModalityHeads | None = None, spec: ModelSpec = SPEC, model: str = "m"
) -> ServedVersion:
    """With heads that are random, other ones for each number, unless they are given."""
    created_at = datetime(2026, 11, 24, tzinfo=UTC)
    heads = heads or random_heads(spec, number)
    return ServedVersion(model, number, spec, LoadedHeads(heads), created_at, PAIRS, (number,))


def rows(modality: str, count: int, seed: int = 1) -> Float32Array:
    """Features of that modality."""
    random = np.random.default_rng(seed)
    return random.normal(size=(count, SPEC.widths[modality])).astype(np.float32)


def load_version(store: ObjectStore, model: str, number: int) -> ServedVersion:
    """A published version that holds its heads itself, verified."""
    stored = StoredVersions(store)
    manifest = stored.manifest(model, number)
    loaded = stored.read(manifest, Reservation(None, 0))
    stored.check(manifest, loaded)
    return described(manifest, loaded)
