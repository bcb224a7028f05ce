"""The files of a version as safetensors bytes: heads, memory, method state, moments, self-test.

Reading executes nothing (no pickle). A damaged file raises InvalidVersion.
"""

from collections.abc import Collection, Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from cmcl.contract.errors import InvalidVersion
from cmcl.contract.model import ModelSpec
from workers.model.heads import ModalityHeads, head_width
from workers.model.memory import Memory
from workers.model.tensor_bytes import load
from workers.nullspace.conditioning import Conditioning
from workers.nullspace.moments import PairMoments, SecondMoment

_SELFTEST_ROWS = 4
# Names of modalities do not contain it, so keys split unambiguously.
_SEPARATOR = "/"


def save_heads(heads: ModalityHeads) -> bytes:
    """All heads with their conditioning. Not a delta: a version is complete by itself."""
    tensors = {f"{name}/weight": weight for name, weight in heads.weights.items()}
    for name, conditioning in heads.conditioning.items():
        tensors |= {f"{name}/mean": conditioning.mean_F, f"{name}/map": conditioning.map_FF}
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


def load_heads(data: bytes, spec: ModelSpec) -> ModalityHeads:
    """Heads as float32, checked against the spec's shapes and for NaN. Raises InvalidVersion."""
    return heads_from(_load(data, "heads"), spec)


def heads_from(tensors: Mapping[str, Tensor], spec: ModelSpec) -> ModalityHeads:
    """Heads from tensors by name; float32 tensors are not copied. Raises InvalidVersion."""
    weights, conditioning = {}, {}
    for modality, width in spec.modalities.items():
        shape = (spec.width, head_width(width))
        weights[modality] = _tensor(tensors, f"{modality}/weight", shape)
        if f"{modality}/map" in tensors or f"{modality}/mean" in tensors:
            conditioning[modality] = Conditioning(
                _tensor(tensors, f"{modality}/mean", (width,)),
                _tensor(tensors, f"{modality}/map", (width, width)),
            )
    return ModalityHeads(weights, conditioning)


def save_method_state(state: Mapping[str, Tensor]) -> bytes:
    """State of a method that outlives a dataset."""
    return save({name: tensor.contiguous() for name, tensor in state.items()})


def load_method_state(data: bytes) -> dict[str, Tensor]:
    """State of a method. Raises InvalidVersion."""
    return _load(data, "method's state")


def save_moments(moments: PairMoments) -> bytes:
    """Moments of one dataset."""
    return save(moment_tensors(moments))


def load_moments(data: bytes) -> PairMoments:
    """Moments of one dataset. Raises InvalidVersion."""
    return moments_from(_load(data, "moments"), "")


def save_memory(memory: Memory) -> bytes:
    """Moments of all pairs."""
    tensors: dict[str, Tensor] = {}
    for (first, second), moments in memory.by_pair.items():
        prefix = f"{first}{_SEPARATOR}{second}{_SEPARATOR}"
        tensors |= {prefix + name: value for name, value in moment_tensors(moments).items()}
        tensors[f"{prefix}datasets"] = torch.tensor(memory.datasets[first, second])
    return save(tensors)


def load_memory(data: bytes) -> Memory:
    """Moments of all pairs. Raises InvalidVersion."""
    tensors = _load(data, "memory")
    pairs = sorted({(first, second) for first, second, _ in map(_split, tensors)})
    moments, datasets = {}, {}
    for first, second in pairs:
        prefix = f"{first}{_SEPARATOR}{second}{_SEPARATOR}"
        moments[first, second] = moments_from(tensors, prefix)
        datasets[first, second] = _number(tensors, f"{prefix}datasets")
    return Memory(moments, datasets)


def save_selftest(heads: ModalityHeads, spec: ModelSpec) -> bytes:
    """A few features of each modality and their embeddings.

    The features are random, from the spec's seed, so that a version contains no user data.
    """
    generator = torch.Generator().manual_seed(spec.seed)
    tensors: dict[str, Tensor] = {}
    for modality, width in sorted(spec.modalities.items()):
        features_BF = torch.randn(_SELFTEST_ROWS, width, generator=generator)
        tensors[f"{modality}{_SEPARATOR}features"] = features_BF
        tensors[f"{modality}{_SEPARATOR}embeddings"] = heads.embed(modality, features_BF)
    return save(tensors)


def load_selftest(data: bytes, modalities: Collection[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """By modality: features (B × F) and their expected embeddings (B × E).

    Raises InvalidVersion.
    """
    tensors = _load(data, "self-test")
    try:
        return {
            modality: (
                tensors[f"{modality}{_SEPARATOR}features"],
                tensors[f"{modality}{_SEPARATOR}embeddings"],
            )
            for modality in modalities
        }
    except KeyError as error:
        raise InvalidVersion(f"the self-test has no {error}") from error


def check_selftest(
    modality: str, given_BE: Tensor, promised_BE: Tensor, tolerance: float = 1e-4
) -> None:
    """Raises InvalidVersion if a head's embeddings differ from the expected ones."""
    gap = float((given_BE - promised_BE).abs().max())
    if not gap <= tolerance:
        raise InvalidVersion(
            f"self-test of head {modality!r}: embeddings differ by {gap:.2g}, "
            f"permitted is {tolerance:g}"
        )


def moment_tensors(moments: PairMoments) -> dict[str, Tensor]:
    """Moments as named tensors."""
    return {
        "count": torch.tensor(moments.count, dtype=torch.int64),
        "first": moments.first.sum_II.contiguous(),
        "second": moments.second.sum_II.contiguous(),
        "cross": moments.cross_IJ.contiguous(),
    }


def moments_from(tensors: Mapping[str, Tensor], prefix: str) -> PairMoments:
    """Moments from tensors whose names begin with `prefix`. Raises InvalidVersion."""
    count = _number(tensors, f"{prefix}count")
    try:
        return PairMoments(
            SecondMoment(count, tensors[f"{prefix}first"]),
            SecondMoment(count, tensors[f"{prefix}second"]),
            tensors[f"{prefix}cross"],
        )
    except KeyError as error:
        raise InvalidVersion(f"the moments have no {error}") from error


def _split(name: str) -> tuple[str, str, str]:
    try:
        first, second, what = name.split(_SEPARATOR)
    except ValueError as error:
        raise InvalidVersion(f"the memory contains {name!r}, which is not a moment") from error
    return first, second, what


def _number(tensors: Mapping[str, Tensor], name: str) -> int:
    if name not in tensors:
        raise InvalidVersion(f"the moments have no {name!r}")
    return int(tensors[name])


def _tensor(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None or tuple(tensor.shape) != shape:
        found = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
        raise InvalidVersion(f"the heads' {name!r} {found}, expected {shape}")
    if not _is_finite(tensor):
        raise InvalidVersion(f"the heads' {name!r} has entries that are not finite")
    return tensor.float()


def _is_finite(tensor: Tensor) -> bool:
    """A finite sum implies finite terms, at a tenth of the cost; an infinite sum may be overflow."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _load(data: bytes, what: str) -> dict[str, Tensor]:
    try:
        return load(data)
    except SafetensorError as error:
        raise InvalidVersion(f"the {what} cannot be read: {error}") from error
