"""Our loop, as a job runs it: `learn` on a model that has something to protect.

Shapes: N rows of a dataset, I and J widths of the two sides.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.training.bare import Sides
from workers.contract.job import Phase
from workers.contract.modality import ModalityPair
from workers.contract.model import ModelSpec, ProtectionSpec, TrainingSpec
from workers.model.rows import PairedRows
from workers.train.distributed import ALONE
from workers.train.learn import Knowledge, Task, Watcher, before_the_first, learn
from workers.train.loop import UpdateDone

PAIR = ModalityPair(first="image", second="text")
# Each side has learned with a partner of its own, so that both heads have something to keep.
_BEFORE = ModalityPair(first="audio", second="image"), ModalityPair(first="depth", second="text")
# What is measured beside the mask alone, which makes the same products as its peers.
POLICIES = {
    "mask": ProtectionSpec(policy="preserve", drift_penalty=0.0, max_drift=1e9),
    "preserve": ProtectionSpec(policy="preserve", max_drift=1e9),
    "improve": ProtectionSpec(policy="improve"),
}


@dataclass
class Clock(Watcher):
    """When training began, and when each update was done."""

    began: float = 0.0
    at: list[float] = field(default_factory=list)

    def enter(self, phase: Phase) -> None:
        if phase == "training":
            self.began = time.perf_counter()

    def update_done(self, update: UpdateDone) -> None:
        self.at.append(time.perf_counter())

    @property
    def of_one(self) -> float:
        """Seconds of one update, the first left out: it waits for what a dataset needs once."""
        return (self.at[-1] - self.at[0]) / (len(self.at) - 1)

    @property
    def before_the_first(self) -> float:
        """Seconds from the beginning of training until the first update is done, without itself."""
        return self.at[0] - self.began - self.of_one


def spec_of(width: int, batch: int, epochs: int, policy: str) -> ModelSpec:
    """A head reads `width` numbers, so a feature has one less: the constant is appended."""
    names = {name for pair in (*_BEFORE, PAIR) for name in pair.modalities}
    return ModelSpec(
        width=width,
        modalities=dict.fromkeys(sorted(names), width - 1),
        protection=POLICIES[policy],
        training=TrainingSpec(epochs=epochs, batch_size=batch),
    )


def learned_before(width: int) -> Knowledge:
    """What a model knows after two datasets, one for either head."""
    spec, known = spec_of(width, width, 1, "mask"), None
    for seed, pair in enumerate(_BEFORE, start=1):
        task = Task(pair, _rows(random_sides(2 * width, width - 1, seed)), seed)
        before = known or before_the_first(spec)
        known = learn(spec, before, task, ALONE, torch.device("cpu"), Watcher()).knowledge
    assert known is not None
    return known


def random_sides(rows: int, width: int, seed: int) -> Sides:
    """Rows whose k-th direction has the variance 1 / k, as real features' spectra fall."""
    generator = torch.Generator().manual_seed(seed)
    scale_I = torch.arange(1, width + 1).rsqrt()
    first, second = (torch.randn(rows, width, generator=generator) * scale_I for _ in range(2))
    return Sides(first, second)


def our_loop(
    known: Knowledge, sides: Sides, width: int, batch: int, policy: str
) -> Callable[[int], Clock]:
    """A function that makes so many passes over the rows and answers their times."""

    def run(epochs: int) -> Clock:
        clock, task = Clock(), Task(PAIR, _rows(sides), seed=7)
        spec = spec_of(width, batch, epochs, policy)
        learn(spec, known, task, ALONE, torch.device("cpu"), clock)
        return clock

    return run


def _rows(sides: Sides) -> PairedRows:
    keys_N = torch.arange(len(sides))
    return PairedRows(sides.first_NI, sides.second_NJ, keys_N, keys_N)
