"""How full a model is. Per modality: ranks, blocked entries, free shares so far, and a forecast."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

from cmcl.contract.capacity import Forecast, forecast
from cmcl.contract.errors import InvalidVersion
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import LearnedDataset, VersionManifest
from workers.inspect.versions import find_version
from workers.methods.method import TrainingContext
from workers.methods.nullspace import protected_space
from workers.nullspace.capacity import Capacity, capacity
from workers.nullspace.mask import UpdateSpace
from workers.storage.object_store import ObjectStore
from workers.train.versions import read_heads, read_memory, read_method_state


@dataclass(frozen=True)
class FreeShare:
    """Free entries of a head in one version, 0 to 1. `learned`: its dataset had the modality."""

    version: int
    free_share: float
    learned: bool


@dataclass(frozen=True)
class ModalityCapacity:
    """A head now, its room for further datasets, and its free share in every version so far, oldest first."""

    now: Capacity
    forecast: Forecast
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

    It is what the next dataset would meet; with `stable_index`, a dataset of the modality's latest pair.
    The forecast uses the free shares after the modality's own datasets. Other datasets change its
    partners' heads, which moves its share a little. Raises Unanswerable, WorkerError.
    """
    manifest = find_version(store, model, version)
    measured: dict[str, list[_Head]] = {}
    latest: dict[str, LearnedDataset] = {}
    # A merge adds several datasets in one version.
    for number, lines in groupby(manifest.learned, lambda line: line.version):
        for line in lines:
            latest |= dict.fromkeys(line.pair.modalities, line)
        then = find_version(store, model, number)
        for modality, head in _heads_in(store, then, latest).items():
            measured.setdefault(modality, []).append(head)
    modalities = {modality: _summary(heads) for modality, heads in measured.items()}
    spec = manifest.spec
    return ModelCapacity(
        model, version, spec.method, spec.protection.kept_energy, modalities, remark_on_method(spec)
    )


@dataclass(frozen=True)
class _Head:
    """A head in one version."""

    share: FreeShare
    space: UpdateSpace


def _heads_in(
    store: ObjectStore, manifest: VersionManifest, latest: Mapping[str, LearnedDataset]
) -> dict[str, _Head]:
    """Each modality that has learned something, with the latest dataset that had it."""
    heads, memory = read_heads(store, manifest), read_memory(store, manifest)
    method_state, spec = read_method_state(store, manifest), manifest.spec
    return {
        modality: _measured(
            manifest,
            TrainingContext(heads, memory, method_state, learned.pair, spec.training, spec.seed),
            modality,
            learned=learned.version == manifest.version,
        )
        for modality, learned in latest.items()
    }


def _measured(
    manifest: VersionManifest, context: TrainingContext, modality: str, *, learned: bool
) -> _Head:
    protection = manifest.spec.protection
    space = protected_space(context, modality, protection.kept_energy, protection.stable_index)
    if space is None:
        raise InvalidVersion(f"version {manifest.version} has no moments of {modality!r}")
    share = FreeShare(manifest.version, float(space.free_EI.double().mean()), learned)
    return _Head(share, space)


def _summary(heads: list[_Head]) -> ModalityCapacity:
    space, history = heads[-1].space, tuple(head.share for head in heads)
    own = [share.free_share for share in history if share.learned]
    now = capacity(space.outputs, space.inputs, space.free_EI)
    return ModalityCapacity(now, forecast(own), history)


def remark_on_method(spec: ModelSpec) -> tuple[str, ...]:
    """A sentence for models without a mask."""
    if spec.solves:
        return ("The policy is improve, which solves heads: blocked is what replay would block.",)
    if spec.method == "nullspace":
        return ()
    return (f"The method is {spec.method}: blocked is what nullspace would block.",)
