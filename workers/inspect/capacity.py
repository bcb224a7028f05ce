"""How full is a model? Per modality: ranks, blocked entries, free shares up to now, a forecast."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.contract.version import LearnedDataset, VersionManifest
from workers.inspect.protected import protected_moments, remark_on_method
from workers.inspect.versions import find_version, heads_of, memory_of
from workers.nullspace.capacity import Capacity, capacity
from workers.nullspace.mask import product_mask
from workers.nullspace.moments import SecondMoment
from workers.nullspace.subspace import EigenBasis, eigenbasis
from workers.storage.port import ObjectStore


@dataclass(frozen=True)
class FreeShare:
    """Free entries of a head in one version, 0 to 1; `learned`: its dataset had the modality."""

    version: int
    free_share: float
    learned: bool


@dataclass(frozen=True)
class ModalityCapacity:
    """A head now, and how its free share came down, oldest version first."""

    now: Capacity
    history: tuple[FreeShare, ...]


@dataclass(frozen=True)
class ModelCapacity:
    """All modalities that have learned something by `version`."""

    model: str
    version: int
    method: str
    kept_energy: float
    modalities: Mapping[str, ModalityCapacity]
    remarks: tuple[str, ...]


def model_capacity(store: ObjectStore, model: str, version: int) -> ModelCapacity:
    """Measure every version of the lineage. The mask is the product rule at the kept energy.

    The forecast rests on the free shares after the modality's own datasets; other datasets turn
    its partners' heads, which moves its share a little. Raises Unanswerable, WorkerError.
    """
    manifest = find_version(store, model, version)
    measured: dict[str, list[_Head]] = {}
    for learned in manifest.learned:
        then = find_version(store, model, learned.version)
        for modality, head in _heads_in(store, then, learned, measured).items():
            measured.setdefault(modality, []).append(head)
    modalities = {modality: _summary(heads) for modality, heads in measured.items()}
    spec = manifest.spec
    return ModelCapacity(
        model, version, spec.method, spec.protection.energy, modalities, remark_on_method(spec)
    )


@dataclass(frozen=True)
class _Head:
    """A head in one version, with the moment that `inputs` decomposes."""

    share: FreeShare
    outputs: EigenBasis
    inputs: EigenBasis
    moment: SecondMoment
    free_EI: Tensor


def _heads_in(
    store: ObjectStore,
    manifest: VersionManifest,
    learned: LearnedDataset,
    earlier: Mapping[str, list[_Head]],
) -> dict[str, _Head]:
    heads, memory = heads_of(store, manifest), memory_of(store, manifest)
    found = {}
    for modality in manifest.spec.modalities:
        protected = protected_moments(manifest.spec, heads, memory, modality)
        if protected is None:
            continue
        inputs = _inputs(protected.inputs, earlier.get(modality, []))
        outputs = eigenbasis(protected.partners)
        free_EI = product_mask(outputs, inputs, manifest.spec.protection.energy)
        free_share = float(free_EI.double().mean())
        share = FreeShare(manifest.version, free_share, modality in learned.pair.modalities)
        found[modality] = _Head(share, outputs, inputs, protected.inputs, free_EI)
    return found


def _inputs(moment: SecondMoment, earlier: list[_Head]) -> EigenBasis:
    """Most versions learn other modalities: what did not change is not decomposed again."""
    if earlier and torch.equal(earlier[-1].moment.sum_II, moment.sum_II):
        return earlier[-1].inputs
    return eigenbasis(moment)


def _summary(heads: list[_Head]) -> ModalityCapacity:
    now, history = heads[-1], tuple(head.share for head in heads)
    own = [share.free_share for share in history if share.learned]
    return ModalityCapacity(capacity(now.outputs, now.inputs, now.free_EI, own), history)
