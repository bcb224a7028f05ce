"""What one more version costs when few and when many datasets are behind it. In process, without a store.

The history is simulated: all datasets of a pair of modalities have the same moments, which has no part in the cost. Six
modalities have fifteen pairs. Shapes: N rows, F width of a feature.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import combinations, cycle, islice
from typing import TypedDict

import torch
from torch import Tensor

from benchmarks.command_line import log_progress
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from workers.model.heads import ModalityHeads, PairedRows, initial_heads
from workers.model.memory import Chosen, Memory
from workers.nullspace.centred import CentredMoments, dataset_moments
from workers.nullspace.moments import PairMoments
from workers.train.certify import PastDataset, certificates, weights_of
from workers.train.learn import ModelState, Task, learn, moments_of_halves
from workers.train.rows import RowsInMemory
from workers.train.run import Run

WIDTHS: Mapping[str, int] = {
    "audio": 768,
    "depth": 640,
    "image": 1280,
    "pose": 512,
    "text": 384,
    "video": 1024,
}
# Of the numbers that the rows of a pair share, and of their spectrum.
_SHARED, _DECAY = 100, 0.7
_RIDGE, _SIGNIFICANT = 0.02, 32


class VersionCost(TypedDict):
    """Seconds of one more version, by part."""

    datasets: int
    seconds: float
    learn_s: float
    certificates_s: float


class Growth(TypedDict):
    """Costs by the number of datasets behind a version; `growth`: the last one over the first."""

    widths: dict[str, int]
    versions: list[VersionCost]
    growth: float


def measure_growth(
    histories: Sequence[int], widths: Mapping[str, int] = WIDTHS, rows: int = 1000
) -> Growth:
    """Return the seconds of one more version by the number of datasets behind it, and the last one over the first.

    `histories`: these numbers, in rising order. A version is learned, and every earlier dataset certified.
    """
    spec = ModelSpec(modalities=widths)
    heads = initial_heads(spec)
    pairs = [ModalityPair(first=a, second=b) for a, b in combinations(sorted(widths), 2)]
    raw = {pair: _rows(widths, pair, rows, seed) for seed, pair in enumerate(pairs, start=1)}
    moments = {pair: _moments(heads, pair, each) for pair, each in raw.items()}
    found = []
    # The first one is measured twice: before it, the process still allocates and compiles.
    for datasets in (histories[0], *histories):
        log_progress(f"one more version with {datasets} datasets behind it")
        found.append(_seconds(spec, heads, raw[pairs[0]], moments, datasets))
    versions = found[1:]
    return {
        "widths": dict(widths),
        "versions": versions,
        "growth": versions[-1]["seconds"] / versions[0]["seconds"],
    }


def _seconds(
    spec: ModelSpec,
    heads: ModalityHeads,
    rows: PairedRows,
    moments: Mapping[ModalityPair, PairMoments],
    datasets: int,
) -> VersionCost:
    """Learn a dataset of the first pair with so many datasets behind it, and certify these."""
    first, *_ = moments
    past = tuple(
        PastDataset.in_memory(f"ds-{number}", pair, moments[pair], weights_of(pair, heads))
        for number, pair in enumerate(islice(cycle(moments), datasets))
    )
    before = ModelState(heads, _memory(moments, datasets))
    began = time.perf_counter()
    learned = learn(spec, before, Task(first, RowsInMemory(rows), spec.seed, past))
    trained = time.perf_counter()
    certificates(past, heads, learned.model_state.heads)
    ended = time.perf_counter()
    return {
        "datasets": datasets,
        "seconds": ended - began,
        "learn_s": trained - began,
        "certificates_s": ended - trained,
    }


def _memory(moments: Mapping[ModalityPair, PairMoments], datasets: int) -> Memory:
    """The memory of so many datasets, of the pairs in turn."""
    counts = {pair: len(range(place, datasets, len(moments))) for place, pair in enumerate(moments)}
    learned = {pair: count for pair, count in counts.items() if count}
    ridges = dict[str, Chosen]()
    for pair, count in learned.items():
        for name in pair.modalities:
            ridges[name] = ridges.get(name, Chosen()) + Chosen((_RIDGE,) * count)
    return Memory(
        datasets={pair.modalities: count for pair, count in learned.items()},
        centred={
            pair.modalities: _repeated(dataset_moments(moments[pair]), count)
            for pair, count in learned.items()
        },
        ridges=ridges,
        significant={
            pair.modalities: Chosen((float(_SIGNIFICANT),) * count)
            for pair, count in learned.items()
        },
    )


def _repeated(sums: CentredMoments, count: int) -> CentredMoments:
    """The sum of so many equal datasets, by doubling."""
    if count == 1:
        return sums
    half = _repeated(sums, count // 2)
    return half + half + sums if count % 2 else half + half


def _moments(heads: ModalityHeads, pair: ModalityPair, rows: PairedRows) -> PairMoments:
    one, other = moments_of_halves(heads, pair, RowsInMemory(rows), Run())
    return one + other


def _rows(widths: Mapping[str, int], pair: ModalityPair, rows: int, seed: int) -> PairedRows:
    """Random features of a pair that have something in common, with a spectrum that decays."""
    generator = torch.Generator().manual_seed(seed)
    shared_NS = torch.randn(rows, _SHARED, generator=generator)
    shared_NS *= torch.arange(1, _SHARED + 1).pow(-_DECAY)
    first_NF, second_NG = (
        _features(shared_NS, widths[modality], generator) for modality in pair.modalities
    )
    keys_N = torch.arange(rows)
    return PairedRows(first_NF, second_NG, keys_N, keys_N)


def _features(shared_NS: Tensor, width: int, generator: torch.Generator) -> Tensor:
    mixing_SF = torch.randn(_SHARED, width, generator=generator)
    noise_NF = torch.randn(len(shared_NS), width, generator=generator)
    return torch.nn.functional.normalize(shared_NS @ mixing_SF + 0.3 * noise_NF, dim=1)
