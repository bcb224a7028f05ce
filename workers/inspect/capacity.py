"""How full is a model? Per modality: ranks, blocked entries, free shares up to now, a forecast."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from cmcl.contract.errors import InvalidVersion
from cmcl.contract.version import LearnedDataset, VersionManifest
from workers.inspect.protected import protected_moments, remark_on_method
from workers.inspect.versions import find_version, heads_of, kept_of, memory_of
from workers.methods.port import Lesson
from workers.methods.sealed import input_basis
from workers.nullspace.capacity import Capacity, capacity
from workers.nullspace.mask import product_mask
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

    It is what the next dataset would meet; with `stable_index`, one of the modality's latest pair.
    The forecast rests on the free shares after the modality's own datasets; other datasets turn
    its partners' heads, which moves its share a little. Raises Unanswerable, WorkerError.
    """
    manifest = find_version(store, model, version)
    measured: dict[str, list[_Head]] = {}
    latest: dict[str, LearnedDataset] = {}
    for learned in manifest.learned:
        latest |= dict.fromkeys(learned.pair.modalities, learned)
        then = find_version(store, model, learned.version)
        for modality, head in _heads_in(store, then, latest).items():
            measured.setdefault(modality, []).append(head)
    modalities = {modality: _summary(heads) for modality, heads in measured.items()}
    spec = manifest.spec
    return ModelCapacity(
        model, version, spec.method, spec.protection.energy, modalities, remark_on_method(spec)
    )


@dataclass(frozen=True)
class _Head:
    """A head in one version."""

    share: FreeShare
    outputs: EigenBasis
    inputs: EigenBasis
    free_EI: Tensor


def _heads_in(
    store: ObjectStore, manifest: VersionManifest, latest: Mapping[str, LearnedDataset]
) -> dict[str, _Head]:
    """Each modality that has learned something, with the latest dataset that had it."""
    heads, memory = heads_of(store, manifest), memory_of(store, manifest)
    kept = kept_of(store, manifest)
    return {
        modality: _measured(
            manifest,
            Lesson(heads, memory, kept, learned.pair, manifest.spec.training, manifest.spec.seed),
            modality,
            learned=learned.version == manifest.version,
        )
        for modality, learned in latest.items()
    }


def _measured(manifest: VersionManifest, lesson: Lesson, modality: str, *, learned: bool) -> _Head:
    protected = protected_moments(manifest.spec, lesson, modality)
    if protected is None:
        raise InvalidVersion(f"version {manifest.version} has no moments of {modality!r}")
    inputs = input_basis(lesson, modality, protected.inputs)
    outputs = eigenbasis(protected.partners)
    free_EI = product_mask(outputs, inputs, manifest.spec.protection.energy)
    share = FreeShare(manifest.version, float(free_EI.double().mean()), learned)
    return _Head(share, outputs, inputs, free_EI)


def _summary(heads: list[_Head]) -> ModalityCapacity:
    now, history = heads[-1], tuple(head.share for head in heads)
    own = [share.free_share for share in history if share.learned]
    return ModalityCapacity(capacity(now.outputs, now.inputs, now.free_EI, own), history)
