"""Versions with random heads, stored as training and the control plane would.

Shapes: E width of the embeddings, F of the features, I = F + 1, B rows.
"""

from datetime import UTC, datetime
from typing import Any

import torch

from cmcl.contract.modality import FileEntry, ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import LearnedDataset, VersionManifest, VersionReport
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import entry_for, publish_manifest, write_blob
from workers.model.artifact import save_memory, save_selftest
from workers.model.heads import ModalityHeads
from workers.model.memory import Memory
from workers.nullspace.conditioning import Conditioning
from workers.train.versions import heads_files, memory_files

MODEL = "measured"
MODALITY = "image"
_OTHER = "text"


def spec_of(width: int) -> ModelSpec:
    """Return a spec with two modalities without a lift, and features and embeddings of the same width."""
    return ModelSpec(width=width, modalities={MODALITY: width, _OTHER: width}, lift=0)


def heads_of(version: int, width: int) -> ModalityHeads:
    """Return different heads for each version, conditioned like heads that are trained on rows."""
    generator = torch.Generator().manual_seed(version)
    fixed = torch.Generator().manual_seed(0)
    return ModalityHeads(
        {name: torch.randn(width, width + 1, generator=generator) for name in (MODALITY, _OTHER)},
        {name: _conditioning(width, fixed) for name in (MODALITY, _OTHER)},
    )


def store_version(store: ObjectStore, version: int, width: int) -> ModalityHeads:
    """Store a version, manifest last, without updating the live pointer."""
    heads = heads_of(version, width)
    store_heads(store, version, heads, spec_of(width))
    return heads


def store_heads(
    store: ObjectStore,
    version: int,
    heads: ModalityHeads,
    spec: ModelSpec,
    **fields: Any,
) -> None:
    """Store a version with these heads. `fields`: of its manifest."""
    files = {
        **heads_files(heads),
        layout.SELFTEST: save_selftest(heads, spec),
        **memory_files(save_memory(Memory())),
    }
    entries = {name: write_blob(store, data) for name, data in files.items()}
    publish_manifest(store, _manifest(version, spec, entries).model_copy(update=fields))


def _conditioning(width: int, generator: torch.Generator) -> Conditioning:
    mean_F = torch.randn(width, generator=generator) / width
    half_FF = torch.randn(width, width, generator=generator) / width**0.5
    return Conditioning(mean_F, torch.eye(width) + (half_FF + half_FF.mT) / 8)


def _manifest(version: int, spec: ModelSpec, files: dict[str, FileEntry]) -> VersionManifest:
    learned = LearnedDataset(
        dataset=f"dataset-{version}",
        name=f"dataset-{version}",
        pair=ModalityPair(first=MODALITY, second=_OTHER),
        rows=1,
        version=version,
        moments=entry_for(b""),
        shard_digests=(entry_for(str(version).encode()).sha256,),
    )
    return VersionManifest(
        model=MODEL,
        version=version,
        parent=version - 1 or None,
        job=f"job-{version}",
        attempt=1,
        dataset=learned.dataset,
        spec=spec,
        code_version="benchmark",
        created_at=datetime.now(UTC),
        files=files,
        learned=(learned,),
        report=VersionReport(final_loss=0, updates=1, ranks=1),
    )
