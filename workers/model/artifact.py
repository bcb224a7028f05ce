"""The files of a version as safetensors bytes: heads, memory, method state, moments, self-test.

Reading executes nothing (no pickle). A damaged file raises InvalidVersion.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from cmcl.contract.errors import InvalidVersion
from cmcl.contract.modality import Modality
from cmcl.contract.model import ModelSpec
from workers.model.heads import ModalityHeads, head_width
from workers.model.memory import Chosen, Memory
from workers.model.tensor_bytes import load
from workers.nullspace.centred import CentredMoments, PairNames
from workers.nullspace.conditioning import Conditioning, Lift
from workers.nullspace.moments import PairMoments, SecondMoment, symmetric, triangle

_SELFTEST_ROWS = 4
# Names of modalities do not contain it, so keys split unambiguously.
_SEPARATOR = "/"
_RIDGES = "ridges"
_SIGNIFICANT = "significant"
_SUMS = ("first_triangle", "second_triangle", "cross_covariance")


def save_heads(heads: ModalityHeads) -> tuple[bytes, bytes]:
    """All weights, and what heads read: conditioning and lifts. Not a delta: every version is complete.

    A new modality changes the second file, and other datasets do not.
    """
    weights, inputs = (
        save({name: tensor.contiguous() for name, tensor in tensors.items()})
        for tensors in (_weight_tensors(heads), _input_tensors(heads))
    )
    return weights, inputs


def head_tensors(heads: ModalityHeads) -> dict[str, Tensor]:
    """All heads with their conditioning and lifts as named tensors."""
    return _weight_tensors(heads) | _input_tensors(heads)


def _weight_tensors(heads: ModalityHeads) -> dict[str, Tensor]:
    return {f"{name}/weight": weight for name, weight in heads.weights.items()}


def _input_tensors(heads: ModalityHeads) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, conditioning in heads.conditioning.items():
        tensors |= {f"{name}/{part}": tensor for part, tensor in conditioning.tensors.items()}
    return tensors | {f"{name}/lift": lift.random_FK for name, lift in heads.lifts.items()}


def load_heads(files: Iterable[bytes], spec: ModelSpec) -> ModalityHeads:
    """Heads as float32, checked against the spec's shapes and for NaN. Raises InvalidVersion."""
    tensors: dict[str, Tensor] = {}
    for data in files:
        tensors |= _load(data, "heads")
    return heads_from(tensors, spec)


def load_weights(data: bytes, spec: ModelSpec) -> dict[Modality, Tensor]:
    """The weights alone (E × I), from the first of the two files. Raises InvalidVersion."""
    return _weights_from(_load(data, "heads"), spec)


def _weights_from(tensors: Mapping[str, Tensor], spec: ModelSpec) -> dict[Modality, Tensor]:
    shapes = {
        modality: (spec.width, head_width(width + spec.lift_for(width)))
        for modality, width in spec.widths.items()
    }
    return {name: _tensor(tensors, f"{name}/weight", shape) for name, shape in shapes.items()}


def heads_from(tensors: Mapping[str, Tensor], spec: ModelSpec) -> ModalityHeads:
    """Heads from tensors by name; float32 tensors are not copied. Raises InvalidVersion."""
    conditioning, lifts = {}, {}
    for modality, width in spec.widths.items():
        lift = spec.lift_for(width)
        if f"{modality}/map" in tensors or f"{modality}/mean" in tensors:
            is_number = f"{modality}/map" in tensors and tensors[f"{modality}/map"].ndim == 1
            conditioning[modality] = Conditioning(
                _tensor(tensors, f"{modality}/mean", (width,)),
                _tensor(tensors, f"{modality}/map", (1,) if is_number else (width, width)),
            )
        if lift:
            lifts[modality] = Lift(_tensor(tensors, f"{modality}/lift", (width, lift)))
    return ModalityHeads(_weights_from(tensors, spec), conditioning, lifts)


def save_method_state(state: Mapping[str, Tensor]) -> bytes:
    """State of a method that outlives a dataset."""
    return save({name: tensor.contiguous() for name, tensor in state.items()})


def load_method_state(data: bytes) -> dict[str, Tensor]:
    """State of a method. Raises InvalidVersion."""
    return _load(data, "method's state")


def save_moments(moments: PairMoments) -> bytes:
    """Uncentred moments of one pair, for masks: of one dataset, or pooled over several."""
    return save(moment_tensors(moments))


def save_centred_moments(moments: CentredMoments) -> bytes:
    """What one dataset, or several together, add to the closed form.

    Sums are in float32 where that holds them exactly, as it does those of one dataset: half of the bytes.
    """
    tensors = _centred_tensors(moments)
    narrow = {name: tensors[name].float() for name in _SUMS}
    is_exact = all(torch.equal(narrow[name].double(), tensors[name]) for name in _SUMS)
    return save(tensors | narrow if is_exact else tensors)


def load_moments(data: bytes) -> PairMoments:
    """Moments of one dataset, in either stored form. Raises InvalidVersion."""
    tensors = _load(data, "moments")
    return _centred_from(tensors).pooled if _are_centred(tensors) else moments_from(tensors)


def load_centred_moments(data: bytes) -> CentredMoments:
    """What one dataset added to the closed form, to the bit. Raises InvalidVersion."""
    tensors = _load(data, "moments")
    if not _are_centred(tensors):
        raise InvalidVersion("the moments are those of a mask, and not of the closed form")
    return _centred_from(tensors)


@dataclass(frozen=True)
class SavedMemory:
    """A memory as bytes: the pooled moments of each pair by themselves, so that a version saves those that it changed.

    `others`: how many datasets each pair has, and what they chose.
    """

    others: bytes
    pooled: Mapping[PairNames, bytes]


def save_memory(memory: Memory, known: Memory | None = None) -> SavedMemory:
    """A memory without the moments of pairs that `known` has as well, as the same object."""
    known = known or Memory()
    tensors: dict[str, Tensor] = {}
    pooled: dict[PairNames, bytes] = {}
    for pair, datasets in memory.datasets.items():
        prefix = _SEPARATOR.join((*pair, ""))
        tensors[f"{prefix}datasets"] = torch.tensor(datasets)
        if pair in memory.centred:
            tensors[f"{prefix}{_SIGNIFICANT}"] = _saved(memory.significant[pair])
            if memory.centred[pair] is not known.centred.get(pair):
                pooled[pair] = save_centred_moments(memory.centred[pair])
        elif memory.moments[pair] is not known.moments.get(pair):
            pooled[pair] = save_moments(memory.moments[pair])
    for modality, ridges in memory.ridges.items():
        tensors[f"{modality}{_SEPARATOR}{_RIDGES}"] = _saved(ridges)
    return SavedMemory(save(tensors), pooled)


def load_memory(saved: SavedMemory, with_moments: bool = True) -> Memory:
    """A memory whose moments were saved for every pair; without them if they are not needed. Raises InvalidVersion."""
    tensors = _load(saved.others, "memory")
    moments, datasets, centred, ridges, significant = {}, {}, {}, {}, {}
    for names in sorted({tuple(name.split(_SEPARATOR)[:-1]) for name in tensors}):
        prefix = _SEPARATOR.join((*names, ""))
        if len(names) == 2:
            pair = names[0], names[1]
            datasets[pair] = _number(tensors, f"{prefix}datasets")
            if not with_moments:
                continue
            if pair not in saved.pooled:
                raise InvalidVersion(f"the version has no moments of {' and '.join(pair)}")
            pooled = _load(saved.pooled[pair], "memory")
            if _are_centred(pooled):
                centred[pair] = _centred_from(pooled)
                significant[pair] = _chosen(tensors, f"{prefix}{_SIGNIFICANT}", datasets[pair])
            else:
                moments[pair] = moments_from(pooled)
        elif len(names) == 1 and f"{prefix}{_RIDGES}" in tensors:
            ridges[names[0]] = _chosen(tensors, f"{prefix}{_RIDGES}")
        else:
            raise InvalidVersion(f"the memory contains {prefix!r}, which is no pair")
    return Memory(moments, datasets, centred, ridges, significant)


def save_selftest(heads: ModalityHeads, spec: ModelSpec) -> bytes:
    """A few features of each modality and their embeddings.

    The features are random, from the spec's seed, so that a version contains no user data.
    """
    generator = torch.Generator().manual_seed(spec.seed)
    tensors: dict[str, Tensor] = {}
    for modality, width in sorted(spec.widths.items()):
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


def save_halves(halves: Sequence[PairMoments], digests: Tensor) -> bytes:
    """Exact sums of both halves of a dataset, and digests of its rows (int64, N), which are sorted."""
    tensors = {
        f"{number}{_SEPARATOR}{name}": tensor
        for number, half in enumerate(halves)
        for name, tensor in moment_tensors(half).items()
    }
    return save({**tensors, "rows": digests.sort().values})


def load_halves(data: bytes) -> tuple[list[PairMoments], Tensor]:
    """What `save_halves` saved. Raises InvalidVersion."""
    tensors = _load(data, "halves")
    parts = [
        {
            name.removeprefix(prefix): each
            for name, each in tensors.items()
            if name.startswith(prefix)
        }
        for prefix in (f"0{_SEPARATOR}", f"1{_SEPARATOR}")
    ]
    return [moments_from(part) for part in parts], tensors["rows"]


def moments_from(tensors: Mapping[str, Tensor]) -> PairMoments:
    """Uncentred moments from their tensors. Raises InvalidVersion."""
    count = _number(tensors, "count")
    try:
        return PairMoments(
            SecondMoment(count, tensors["first"]),
            SecondMoment(count, tensors["second"]),
            tensors["cross"],
        )
    except KeyError as error:
        raise InvalidVersion(f"the moments have no {error}") from error


def _centred_tensors(moments: CentredMoments) -> dict[str, Tensor]:
    """One triangle of a symmetric sum. Sums over datasets need float64 to stay exact (nullspace/centred.py)."""
    return {
        "rows": torch.tensor(moments.rows, dtype=torch.int64),
        "weights": moments.weights_D,
        "first_triangle": triangle(moments.first_FF),
        "second_triangle": triangle(moments.second_GG),
        "cross_covariance": moments.cross_FG.contiguous(),
        "first_means": moments.first_means_DF.contiguous(),
        "second_means": moments.second_means_DG.contiguous(),
    }


def _are_centred(tensors: Mapping[str, Tensor]) -> bool:
    return "rows" in tensors


def _centred_from(tensors: Mapping[str, Tensor]) -> CentredMoments:
    try:
        first_means_DF, second_means_DG = (tensors[f"{side}_means"] for side in ("first", "second"))
        return CentredMoments(
            _number(tensors, "rows"),
            tensors["weights"],
            symmetric(tensors["first_triangle"], first_means_DF.shape[1]),
            symmetric(tensors["second_triangle"], second_means_DG.shape[1]),
            tensors["cross_covariance"].double(),
            first_means_DF,
            second_means_DG,
        )
    except (KeyError, IndexError, RuntimeError) as error:
        raise InvalidVersion(f"the moments cannot be read: {error}") from error


def _number(tensors: Mapping[str, Tensor], name: str) -> int:
    if name not in tensors:
        raise InvalidVersion(f"the moments have no {name!r}")
    return int(tensors[name])


def _saved(chosen: Chosen) -> Tensor:
    return torch.tensor(chosen.numbers, dtype=torch.float64)


def _chosen(tensors: Mapping[str, Tensor], name: str, count: int | None = None) -> Chosen:
    """Numbers above 0 in rising order, `count` of them if it is given."""
    found = tensors.get(name, torch.empty(0))
    if (
        found.ndim != 1
        or len(found) != (count or max(1, len(found)))
        or not bool((found > 0).all())
    ):
        raise InvalidVersion(
            f"the memory's {name!r} is not a list of {count or 'some'} positive numbers"
        )
    return Chosen(tuple(sorted(found.tolist())))


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
