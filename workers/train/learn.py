"""What a model knows, and how it learns one more dataset. Knows no store, no job, no Ray.

The training job (`job.py`) and the benchmarks run this same code.
Shapes: N rows, F and G raw widths, I and J widths of what the two heads read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from workers.contract.errors import NothingToLearn
from workers.contract.job import Phase
from workers.contract.modality import ModalityPair
from workers.contract.model import ModelSpec
from workers.contract.version import Shrinkage
from workers.methods.port import Kept, Lesson
from workers.methods.registry import method_for
from workers.model.features import unit_rows, with_constant
from workers.model.heads import ModalityHeads, initial_heads
from workers.model.memory import Memory
from workers.model.rows import PairedRows
from workers.nullspace.conditioning import conditioning
from workers.nullspace.mask import UpdateSpace
from workers.nullspace.moments import PairMoments, SecondMoment, pair_moments, sum_of_products
from workers.train.certify import Earlier, limit_drift, shrinkage
from workers.train.distributed import ALONE, World, broadcast, share_of, sum_moment, sum_moments
from workers.train.loop import Trained, UpdateDone, mean_loss, new_heads, train_pair


@dataclass(frozen=True)
class Knowledge:
    """What a version knows: enough to answer, and enough to learn the next dataset."""

    heads: ModalityHeads
    memory: Memory = field(default_factory=Memory)
    kept: Kept = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One dataset to learn. `rows` hold raw features; the seed decides their order."""

    pair: ModalityPair
    rows: PairedRows
    seed: int
    earlier: tuple[Earlier, ...] = ()


@dataclass(frozen=True)
class Learned:
    """What came of it."""

    knowledge: Knowledge
    moments: PairMoments
    spaces: Mapping[str, UpdateSpace]
    trained: Trained
    shrinkage: Shrinkage | None


class Watcher:
    """Told how far learning has come; the default tells nobody."""

    def enter(self, phase: Phase) -> None:
        """The next phase begins."""

    def update_done(self, update: UpdateDone) -> None:
        """After every update."""


def before_the_first(spec: ModelSpec) -> Knowledge:
    """What the seed alone knows."""
    return Knowledge(initial_heads(spec))


def learn(
    spec: ModelSpec,
    before: Knowledge,
    task: Task,
    here: World,
    device: torch.device,
    watcher: Watcher,
) -> Learned:
    """One more dataset. Every rank ends with the same; nothing is written anywhere."""
    method = method_for(spec)
    watcher.enter("moments")
    raw = task.rows.to(device)
    heads = conditioned(spec, before.heads, task.pair, raw, here)
    rows = prepared_rows(heads, task.pair, raw)
    moments = sum_moments(_moments(rows, here), here)
    lesson = Lesson(heads, before.memory, before.kept, task.pair, spec.training, task.seed)
    spaces = method.update_spaces(lesson)
    _agree(spaces, here)
    _check_that_something_can_be_learned(spec, spaces, len(rows))

    watcher.enter("training")
    trained = train_pair(method, lesson, spaces, rows, here, watcher.update_done)

    watcher.enter("limiting")
    limited = limit_drift(spec, lesson, spaces, trained.changes, task.earlier)
    after = new_heads(lesson, spaces, limited.changes)
    kept = method.keep(lesson, after, rows.to(torch.device("cpu")))
    memory = before.memory.with_dataset(task.pair, moments)
    cost = shrinkage(limited, partial(mean_loss, lesson, spaces, rows), trained.changes)
    return Learned(Knowledge(after, memory, kept), moments, spaces, trained, cost)


def prepared_rows(heads: ModalityHeads, pair: ModalityPair, raw: PairedRows) -> PairedRows:
    """Rows as the heads read them, on the device of the raw ones."""
    return replace(
        raw,
        first_NI=heads.prepare(pair.first, raw.first_NI),
        second_NJ=heads.prepare(pair.second, raw.second_NJ),
    )


def conditioned(
    spec: ModelSpec,
    heads: ModalityHeads,
    pair: ModalityPair,
    raw: PairedRows,
    here: World = ALONE,
) -> ModalityHeads:
    """Heads that also condition the modalities whose first dataset this is (raw rows)."""
    new = {}
    own = share_of(len(raw), here)
    for modality, rows_NF in zip(pair.modalities, (raw.first_NI, raw.second_NJ), strict=True):
        if modality not in heads.conditioning:
            # Float64: rows that hardly differ have a covariance below the rounding of float32.
            with_one = with_constant(unit_rows(rows_NF[own]).double())
            local = SecondMoment(len(with_one), sum_of_products(with_one, with_one).cpu())
            new[modality] = conditioning(sum_moment(local, here), spec.conditioning)
            broadcast([new[modality].mean_F, new[modality].map_FF], here)
    return heads.conditioned(new)


def _moments(rows: PairedRows, here: World) -> PairMoments:
    own = rows.at(share_of(len(rows), here))
    return pair_moments(own.first_NI, own.second_NJ).cpu()


def _check_that_something_can_be_learned(
    spec: ModelSpec, spaces: Mapping[str, UpdateSpace], rows: int
) -> None:
    """Raises NothingToLearn, rather than to make a version that is its parent."""
    if rows < spec.training.batch_size:
        raise NothingToLearn(
            f"the dataset has {rows} rows and one batch takes {spec.training.batch_size}: use more "
            "rows or a smaller training.batch_size"
        )
    if not any(bool(space.free_EI.any()) for space in spaces.values()):
        blocked = sum(space.free_EI.numel() for space in spaces.values())
        raise NothingToLearn(
            f"nothing can be learned: all {blocked} entries of the heads "
            f"{' and '.join(spaces)} (100 %) are blocked by what was learned before; use a larger "
            f"width (now {spec.width}) or a smaller protection.kept_energy "
            f"(now {spec.protection.energy:g}) in a new model"
        )


def _agree(spaces: Mapping[str, UpdateSpace], here: World) -> None:
    """All ranks train in the leading rank's coordinates: two CPUs may round an eigenvector apart."""
    for space in spaces.values():
        broadcast([space.outputs.vectors_II, space.inputs.vectors_II, space.free_EI], here)
