"""What a model knows, and how it learns one more dataset. Knows no store, no job, no Ray.

The training job (`job.py`) and the benchmarks run this same code.
Shapes: N rows, F and G raw widths, I and J widths of what the two heads read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from cmcl.contract.errors import InvalidDataset, NothingToLearn
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import Shrinkage
from workers.methods.port import Kept, Lesson, Method, Seen
from workers.methods.registry import method_for
from workers.model.features import head_width, unit_rows, with_constant
from workers.model.heads import ModalityHeads, initial_heads
from workers.model.memory import Memory
from workers.model.rows import PairedRows
from workers.nullspace.conditioning import conditioning
from workers.nullspace.mask import UpdateSpace
from workers.nullspace.moments import (
    PairMoments,
    moment_about,
    no_pairs,
    no_rows,
    pair_moments,
)
from workers.train.certify import Earlier, limit_drift, shrinkage
from workers.train.distributed import broadcast, meet, sum_moment, sum_moments
from workers.train.loop import Trained, mean_loss, new_heads, train_pair, turning
from workers.train.rows.port import TrainingRows, TurnedRows
from workers.train.run import Run, Tensors
from workers.train.start import Start


@dataclass(frozen=True)
class Knowledge:
    """What a version knows: enough to answer, and enough to learn the next dataset."""

    heads: ModalityHeads
    memory: Memory = field(default_factory=Memory)
    kept: Kept = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One dataset to learn. `rows` are raw features; the seed decides their order."""

    pair: ModalityPair
    rows: TrainingRows
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


def before_the_first(spec: ModelSpec) -> Knowledge:
    """What the seed alone knows."""
    return Knowledge(initial_heads(spec))


def learn(
    spec: ModelSpec,
    before: Knowledge,
    task: Task,
    run: Run | None = None,
    method: Method | None = None,
) -> Learned:
    """One more dataset, with `method` or the one that the spec names. Every rank ends with the same;
    nothing but checkpoints is written anywhere."""
    run, method = run or Run(), method or method_for(spec)
    _check_rows(spec, method, task)
    saved = run.checkpoints.newest(run.here)
    start = _resumed(before, task, run, saved) if saved else _begun(spec, before, task, run)
    lesson = Lesson(start.heads, before.memory, before.kept, task.pair, spec.training, task.seed)
    spaces = start.spaces or _update_spaces(spec, method, lesson, run)
    run.checkpoints.begin(replace(start, spaces=spaces).tensors())

    run.watcher.enter("training")
    rows = TurnedRows(task.rows, turning(lesson, spaces, run.device))
    trained = train_pair(method, lesson, spaces, rows, run, saved)

    run.watcher.enter("limiting")
    limited = limit_drift(spec, lesson, spaces, trained.changes, task.earlier, run.here)
    after = new_heads(lesson, spaces, limited.changes)
    kept = method.keep(lesson, after, _seen(method, start, task))
    memory = before.memory.with_dataset(task.pair, start.moments)
    loss_of = partial(mean_loss, lesson, spaces, rows, run)
    cost = shrinkage(limited, loss_of, trained.changes)
    return Learned(Knowledge(after, memory, kept), start.moments, spaces, trained, cost)


def _begun(spec: ModelSpec, before: Knowledge, task: Task, run: Run) -> Start:
    """Two passes over the rows, or one where both modalities are known: condition, and sum."""
    heads = conditioned(spec, before.heads, task.pair, task.rows, run)
    run.watcher.enter("moments")
    return Start(heads, summed_moments(heads, task, run))


def _resumed(before: Knowledge, task: Task, run: Run, saved: Tensors) -> Start:
    """What an interrupted run had found out by its passes over the rows."""
    if task.rows.held() is None:
        for _ in _chunks(task.rows, run):
            pass  # They are read to the local disk, from where batches come.
    return Start.of(saved, before.heads, task.pair)


def _update_spaces(
    spec: ModelSpec, method: Method, lesson: Lesson, run: Run
) -> Mapping[str, UpdateSpace]:
    """All ranks train in the leading rank's coordinates: two CPUs may round an eigenvector apart."""
    spaces = method.update_spaces(lesson)
    for space in spaces.values():
        coordinates = [space.outputs.vectors_II, space.inputs.vectors_II, space.free_EI]
        broadcast(coordinates, run.here)
    _check_that_something_can_be_learned(spec, spaces)
    return spaces


def _seen(method: Method, start: Start, task: Task) -> Seen:
    held = task.rows.held()
    if not method.holds_rows or held is None:
        return Seen(start.moments)
    return Seen(start.moments, prepared_rows(start.heads, task.pair, held))


def prepared_rows(heads: ModalityHeads, pair: ModalityPair, raw: PairedRows) -> PairedRows:
    """Rows as the heads read them, on the device of the raw ones."""
    return replace(
        raw,
        first_NI=heads.prepare(pair.first, raw.first_NI),
        second_NJ=heads.prepare(pair.second, raw.second_NJ),
    )


def conditioned(
    spec: ModelSpec, heads: ModalityHeads, pair: ModalityPair, rows: TrainingRows, run: Run
) -> ModalityHeads:
    """Heads that also condition the modalities whose first dataset this is."""
    new = [modality for modality in pair.modalities if modality not in heads.conditioning]
    if not new:
        return heads
    run.watcher.enter("reading")
    totals = {name: no_rows(head_width(spec.modalities[name])) for name in new}
    shifts: dict[str, Tensor] = {}
    for raw in _chunks(rows, run):
        sides = dict(zip(pair.modalities, (raw.first_NI, raw.second_NJ), strict=True))
        for name in new:
            rows_NI = with_constant(unit_rows(sides[name]))
            shift_I = shifts.setdefault(name, _near_the_mean(rows_NI))
            totals[name] += moment_about(rows_NI, shift_I).cpu()
    made = {
        name: conditioning(sum_moment(total, run.here), spec.conditioning)
        for name, total in totals.items()
    }
    broadcast([part for each in made.values() for part in (each.mean_F, each.map_FF)], run.here)
    return heads.conditioned(made)


def summed_moments(heads: ModalityHeads, task: Task, run: Run) -> PairMoments:
    """The moments of all rows as the heads read them."""
    first, second = (heads.weights[modality].shape[1] for modality in task.pair.modalities)
    total = no_pairs(first, second)
    for raw in _chunks(task.rows, run):
        rows = prepared_rows(heads, task.pair, raw)
        total += pair_moments(rows.first_NI, rows.second_NJ).cpu()
    return sum_moments(total, run.here)


def _chunks(rows: TrainingRows, run: Run) -> Iterator[PairedRows]:
    """This rank's rows, on its device; whoever watches hears of them. In the end ranks meet: they
    read alone, and no two of them equally long."""
    done, own = 0, len(rows) // run.here.size
    for raw in rows.chunks(run.here):
        yield raw.to(run.device)
        done += len(raw)
        run.watcher.rows_read(done, own)
    meet(run.here)


def _near_the_mean(rows_NI: Tensor) -> Tensor:
    """The mean of some rows, without the constant 1, which is to stay."""
    shift_I = rows_NI.mean(dim=0)
    shift_I[-1] = 0
    return shift_I


def _check_rows(spec: ModelSpec, method: Method, task: Task) -> None:
    """Raises NothingToLearn for too few rows, InvalidDataset for too many."""
    if len(task.rows) < spec.training.batch_size:
        raise NothingToLearn(
            f"the dataset has {len(task.rows)} rows and one batch takes "
            f"{spec.training.batch_size}: use more rows or a smaller training.batch_size"
        )
    if method.holds_rows and task.rows.held() is None:
        raise InvalidDataset(
            f"the method {spec.method!r} needs all rows of a dataset in memory, and {len(task.rows)} "
            "rows are too many for it; split the dataset, or use a model with the method 'nullspace'"
        )


def _check_that_something_can_be_learned(
    spec: ModelSpec, spaces: Mapping[str, UpdateSpace]
) -> None:
    """Raises NothingToLearn, rather than to make a version that is its parent."""
    if not any(bool(space.free_EI.any()) for space in spaces.values()):
        blocked = sum(space.free_EI.numel() for space in spaces.values())
        raise NothingToLearn(
            f"nothing can be learned: all {blocked} entries of the heads "
            f"{' and '.join(spaces)} (100 %) are blocked by what was learned before; use a larger "
            f"width (now {spec.width}) or a smaller protection.kept_energy "
            f"(now {spec.protection.energy:g}) in a new model"
        )
