"""Valid versions: every object that a training job and the control plane would write."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache

import torch
from safetensors.torch import save

from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.modality import FileEntry, ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import (
    LearnedDataset,
    LivePointer,
    VersionManifest,
    VersionReport,
)
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import (
    entry_for,
    publish_manifest,
    read_version,
    write_blob,
    write_live,
)
from workers.model.artifact import (
    save_memory,
    save_moments,
    save_selftest,
)
from workers.model.heads import ModalityHeads, initial_heads, unit_rows
from workers.model.memory import Memory
from workers.nullspace.moments import PairMoments, pair_moments
from workers.nullspace.query_drift import projected, sums_of_halves
from workers.train.versions import heads_files, memory_files

_ROWS = 8


@cache
def _initial_heads(spec: str) -> ModalityHeads:
    return initial_heads(ModelSpec.model_validate_json(spec))


def random_heads(spec: ModelSpec, seed: int) -> ModalityHeads:
    """Random heads, different for each seed."""
    generator = torch.Generator().manual_seed(seed)
    # Orthonormal matrices: computing them for each version would take a quarter of the time of the endpoint's tests.
    heads = _initial_heads(spec.model_dump_json())
    return heads.replaced(
        {
            modality: torch.randn(weight.shape, generator=generator)
            for modality, weight in heads.weights.items()
        }
    )


def publish_version(
    store: ObjectStore,
    model: str,
    version: int,
    spec: ModelSpec,
    heads: ModalityHeads,
    generation: int,
    *,
    encoders: Mapping[str, EncoderIdentity] = {},
    learned: Iterable[str] = (),
) -> VersionManifest:
    """Write a version in the order of production, pointer last, and let it answer.

    `encoders`: of its features, by modality. `learned`: its modalities; by default all of the spec.
    """
    manifest = store_version(store, model, version, spec, heads, encoders=encoders, learned=learned)
    write_live(store, model, LivePointer(generation=generation, version=version))
    return manifest


def store_version(
    store: ObjectStore,
    model: str,
    version: int,
    spec: ModelSpec,
    heads: ModalityHeads,
    *,
    encoders: Mapping[str, EncoderIdentity] = {},
    learned: Iterable[str] = (),
) -> VersionManifest:
    """Publish a version without making it live."""
    first, *others = sorted(learned or spec.modalities)
    pairs = [ModalityPair(first=first, second=other) for other in others]
    rows = {pair: random_rows(spec, pair, version) for pair in pairs}
    moments = {pair: _moments(spec, pair, each) for pair, each in rows.items()}
    memory = Memory()
    for pair, each in moments.items():
        memory = memory.with_dataset(pair, each)
    files = {
        **heads_files(heads),
        layout.SELFTEST: save_selftest(heads, spec),
        **memory_files(save_memory(memory)),
    }
    entries = {name: write_blob(store, data) for name, data in files.items()}
    kept = [
        {
            "moments": write_blob(store, save_moments(moments[pair])),
            "projections": write_blob(store, save(_projections(each))),
        }
        for pair, each in rows.items()
    ]
    manifest = _manifest(model, version, spec, pairs, entries, kept).model_copy(
        update={"encoders": dict(encoders)}
    )
    publish_manifest(store, manifest)
    return manifest


def stored_key(store: ObjectStore, model: str, version: int, name: str) -> str:
    """Key of a file of a published version, or of its manifest."""
    if name == layout.MANIFEST:
        return layout.version_manifest(model, version)
    return layout.blob(read_version(store, model, version).files[name].sha256)


def _manifest(
    model: str,
    version: int,
    spec: ModelSpec,
    pairs: Sequence[ModalityPair],
    files: dict[str, FileEntry],
    kept: Sequence[Mapping[str, FileEntry]],
) -> VersionManifest:
    dataset = f"{model}-data-{version}"
    learned = LearnedDataset(
        dataset=dataset,
        name=f"data-{version}",
        pair=pairs[0],
        rows=_ROWS,
        version=version,
        moments=kept[0]["moments"],
        projections=kept[0]["projections"],
        shard_digests=(entry_for(dataset.encode()).sha256,),
    )
    others = [
        learned.model_copy(
            update={
                "dataset": f"{dataset}-{pair.key}",
                "name": pair.key,
                "pair": pair,
                **entries,
            }
        )
        for pair, entries in zip(pairs[1:], kept[1:], strict=True)
    ]
    return VersionManifest(
        model=model,
        version=version,
        parent=version - 1 or None,
        job=f"{model}-job-{version}",
        attempt=1,
        dataset=dataset,
        spec=spec,
        code_version="test",
        created_at=datetime(2026, 11, 24, tzinfo=UTC),
        files=files,
        learned=(*others, learned),
        report=VersionReport(final_loss=0.5, updates=1, ranks=1),
    )


def random_rows(spec: ModelSpec, pair: ModalityPair, seed: int) -> dict[str, torch.Tensor]:
    """The raw features that a version of that number has learned, by modality."""
    generator = torch.Generator().manual_seed(seed)
    return {
        modality: torch.randn(_ROWS, spec.widths[modality], generator=generator)
        for modality in pair.modalities
    }


def _moments(spec: ModelSpec, pair: ModalityPair, rows: Mapping[str, torch.Tensor]) -> PairMoments:
    heads = _initial_heads(spec.model_dump_json())
    return pair_moments(*(heads.prepare(modality, rows[modality]) for modality in pair.modalities))


def _projections(rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    in_second_B = torch.arange(_ROWS) % 2 == 1
    return {
        modality: sums_of_halves(projected(unit_rows(raw_BF)), in_second_B)
        for modality, raw_BF in rows.items()
    }
