"""The files of a version, as safetensors bytes: heads, memory, moments, self-test.

Nothing here executes what it reads (no pickle); a damaged file raises InvalidVersion.
"""

from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from workers.contract.errors import InvalidVersion
from workers.contract.model import ModelSpec
from workers.model.features import head_width, prepare
from workers.model.heads import ModalityHeads
from workers.model.memory import Memory
from workers.nullspace.moments import PairMoments, SecondMoment

_SELFTEST_ROWS = 4
# Modality names have no such character, so a key splits without doubt.
_SEPARATOR = "/"


def save_heads(heads: ModalityHeads) -> bytes:
    """All heads, not a delta: a version is whole by itself."""
    return save({modality: weight.contiguous() for modality, weight in heads.weights.items()})


def load_heads(data: bytes, spec: ModelSpec) -> ModalityHeads:
    """Heads as float32 with the shapes that the spec asks for, all finite. Raises InvalidVersion."""
    weights = _load(data, "heads")
    for modality, feature_width in spec.modalities.items():
        expected = (spec.width, head_width(feature_width))
        weight = weights.get(modality)
        if weight is None or tuple(weight.shape) != expected:
            found = "is missing" if weight is None else f"has shape {tuple(weight.shape)}"
            raise InvalidVersion(f"head {modality!r} {found}, expected {expected}")
        if not bool(torch.isfinite(weight).all()):
            raise InvalidVersion(f"head {modality!r} has entries that are not finite")
    return ModalityHeads({modality: weights[modality].float() for modality in spec.modalities})


def save_moments(moments: PairMoments) -> bytes:
    """Moments of one dataset."""
    return save(_moment_tensors(moments))


def load_moments(data: bytes) -> PairMoments:
    """Moments of one dataset. Raises InvalidVersion."""
    return _moments_from(_load(data, "moments"), "")


def save_memory(memory: Memory) -> bytes:
    """Moments of all pairs."""
    tensors: dict[str, Tensor] = {}
    for (first, second), moments in memory.by_pair.items():
        prefix = f"{first}{_SEPARATOR}{second}{_SEPARATOR}"
        tensors |= {prefix + name: value for name, value in _moment_tensors(moments).items()}
    return save(tensors)


def load_memory(data: bytes) -> Memory:
    """Moments of all pairs. Raises InvalidVersion."""
    tensors = _load(data, "memory")
    pairs = sorted({tuple(name.split(_SEPARATOR)[:2]) for name in tensors})
    return Memory(
        {
            (first, second): _moments_from(tensors, f"{first}{_SEPARATOR}{second}{_SEPARATOR}")
            for first, second in pairs
        }
    )


def save_selftest(heads: ModalityHeads, spec: ModelSpec) -> bytes:
    """A few features of each modality with the embeddings that they must give.

    The features are random, from the spec's seed: a version holds nobody's data.
    """
    generator = torch.Generator().manual_seed(spec.seed)
    tensors: dict[str, Tensor] = {}
    for modality, width in sorted(spec.modalities.items()):
        features_BF = torch.randn(_SELFTEST_ROWS, width, generator=generator)
        tensors[f"{modality}{_SEPARATOR}features"] = features_BF
        tensors[f"{modality}{_SEPARATOR}embeddings"] = heads.embed(modality, prepare(features_BF))
    return save(tensors)


def run_selftest(data: bytes, heads: ModalityHeads, tolerance: float = 1e-4) -> None:
    """Raises InvalidVersion where the heads do not give the promised embeddings."""
    tensors = _load(data, "self-test")
    for modality in heads.weights:
        try:
            features_BF = tensors[f"{modality}{_SEPARATOR}features"]
            expected_BE = tensors[f"{modality}{_SEPARATOR}embeddings"]
        except KeyError as error:
            raise InvalidVersion(f"the self-test has no {error}") from error
        gap = float((heads.embed(modality, prepare(features_BF)) - expected_BE).abs().max())
        if not gap <= tolerance:
            raise InvalidVersion(
                f"self-test of head {modality!r}: embeddings are off by {gap:.2g}, "
                f"at most {tolerance:g} is permitted"
            )


def _moment_tensors(moments: PairMoments) -> dict[str, Tensor]:
    return {
        "count": torch.tensor(moments.count, dtype=torch.int64),
        "first": moments.first.sum_II.contiguous(),
        "second": moments.second.sum_II.contiguous(),
        "cross": moments.cross_IJ.contiguous(),
    }


def _moments_from(tensors: Mapping[str, Tensor], prefix: str) -> PairMoments:
    try:
        count = int(tensors[f"{prefix}count"])
        return PairMoments(
            SecondMoment(count, tensors[f"{prefix}first"]),
            SecondMoment(count, tensors[f"{prefix}second"]),
            tensors[f"{prefix}cross"],
        )
    except KeyError as error:
        raise InvalidVersion(f"the moments have no {error}") from error


def _load(data: bytes, what: str) -> dict[str, Tensor]:
    try:
        return load(data)
    except SafetensorError as error:
        raise InvalidVersion(f"the {what} cannot be read: {error}") from error
