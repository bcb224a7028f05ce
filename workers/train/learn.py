"""Train one more dataset on the state of a model. No storage, no jobs, no Ray.

The training job (`job.py`) and the benchmarks run this code.
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
from workers.methods.method import DatasetStatistics, Method, MethodState, TrainingContext
from workers.methods.registry import method_for
from workers.model.artifact import moment_tensors, moments_from
from workers.model.heads import ModalityHeads, head_width, initial_heads, unit_rows, with_constant
from workers.model.memory import Memory
from workers.model.rows import PairedRows
from workers.nullspace.conditioning import Conditioning, conditioning
from workers.nullspace.mask import UpdateSpace
from workers.nullspace.moments import (
    PairMoments,
    moment_about,
    no_pairs,
    no_rows,
    pair_moments,
)
from workers.nullspace.subspace import EigenBasis
from workers.train.certify import PastDataset, limit_drift, shrinkage
from workers.train.data.rows import RotatedRows, TrainingRows
from workers.train.distributed import all_reduce_moment, all_reduce_pair_moments, barrier, broadcast
from workers.train.loop import TrainedPair, mean_loss, new_heads, rotation_of, train_pair
from workers.train.run import Run, Tensors, part_of


@dataclass(frozen=True)
class ModelState:
    """The state of a version: enough to serve it, and enough to train the next dataset."""

    heads: ModalityHeads
    memory: Memory = field(default_factory=Memory)
    method_state: MethodState = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One dataset to train. `rows` are raw features, in an order given by the seed."""

    pair: ModalityPair
    rows: TrainingRows
    seed: int
    past: tuple[PastDataset, ...] = ()


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of training one dataset."""

    model_state: ModelState
    moments: PairMoments
    spaces: Mapping[str, UpdateSpace]
    trained: TrainedPair
    shrinkage: Shrinkage | None


@dataclass(frozen=True)
class StartState:
    """Everything that is computed before the first update and constant afterwards.

    The parent's heads with the conditioning of new modalities, the dataset's moments, and the update
    spaces (empty until they are computed). It is part of every checkpoint, so that a run that
    continues need not compute it again.
    """

    heads: ModalityHeads
    moments: PairMoments
    spaces: Mapping[str, UpdateSpace] = field(default_factory=dict)

    def tensors(self) -> Tensors:
        """All but the parent's weights, which are in the parent version."""
        named = {f"moments/{name}": value for name, value in moment_tensors(self.moments).items()}
        for modality, space in self.spaces.items():
            conditioning = self.heads.conditioning[modality]
            parts = {
                "mean": conditioning.mean_F,
                "map": conditioning.map_FF,
                "output_vectors": space.outputs.vectors_II,
                "output_values": space.outputs.values_I,
                "input_vectors": space.inputs.vectors_II,
                "input_values": space.inputs.values_I,
                "free": space.free_EI,
            }
            named |= {f"spaces/{modality}/{name}": value for name, value in parts.items()}
        return named

    @classmethod
    def of(cls, saved: Tensors, parent: ModalityHeads, pair: ModalityPair) -> "StartState":
        """From the tensors of a checkpoint."""
        spaces, conditionings = {}, {}
        for modality in pair.modalities:
            parts = part_of(saved, f"spaces/{modality}")
            conditionings[modality] = Conditioning(parts["mean"], parts["map"])
            outputs = EigenBasis(parts["output_vectors"], parts["output_values"])
            inputs = EigenBasis(parts["input_vectors"], parts["input_values"])
            spaces[modality] = UpdateSpace(outputs, inputs, parts["free"])
        moments = moments_from(part_of(saved, "moments"), "")
        return cls(parent.conditioned(conditionings), moments, spaces)


def initial_state(spec: ModelSpec) -> ModelState:
    """The state before the first dataset: a function of the spec."""
    return ModelState(initial_heads(spec))


def learn(
    spec: ModelSpec,
    before: ModelState,
    task: Task,
    run: Run | None = None,
    method: Method | None = None,
) -> TrainingResult:
    """Train one more dataset, with `method` or the one that the spec names.

    The result is the same on every rank. Nothing but checkpoints is written.
    """
    run, method = run or Run(), method or method_for(spec)
    _check_rows(spec, method, task)
    saved = run.checkpoints.newest(run.here)
    start = _resumed(before, task, run, saved) if saved else _begun(spec, before, task, run)
    context = TrainingContext(
        start.heads, before.memory, before.method_state, task.pair, spec.training, task.seed
    )
    spaces = start.spaces or _update_spaces(spec, method, context, run)
    run.checkpoints.begin(replace(start, spaces=spaces).tensors())

    run.watcher.enter("training")
    rows = RotatedRows(task.rows, rotation_of(context, spaces, run.device))
    trained = train_pair(method, context, spaces, rows, run, saved)

    run.watcher.enter("limiting")
    limited = limit_drift(spec, context, spaces, trained.changes, task.past, run.here)
    after = new_heads(context, spaces, limited.changes)
    method_state = method.next_state(context, after, _statistics(method, start, task))
    memory = before.memory.with_dataset(task.pair, start.moments)
    loss_of = partial(mean_loss, context, spaces, rows, run)
    cost = shrinkage(limited, loss_of, trained.changes)
    return TrainingResult(
        ModelState(after, memory, method_state), start.moments, spaces, trained, cost
    )


def _begun(spec: ModelSpec, before: ModelState, task: Task, run: Run) -> StartState:
    """Two passes over the rows, or one if both modalities are conditioned: condition, then sum."""
    heads = conditioned(spec, before.heads, task.pair, task.rows, run)
    run.watcher.enter("moments")
    return StartState(heads, summed_moments(heads, task, run))


def _resumed(before: ModelState, task: Task, run: Run, saved: Tensors) -> StartState:
    """The start state of an interrupted run, without its passes over the rows."""
    if task.rows.held() is None:
        for _ in _chunks(task.rows, run):
            pass  # Reading them writes them to the local disk, from which batches are read.
    return StartState.of(saved, before.heads, task.pair)


def _update_spaces(
    spec: ModelSpec, method: Method, context: TrainingContext, run: Run
) -> Mapping[str, UpdateSpace]:
    """The update spaces of rank 0 on all ranks: CPUs may round an eigenvector differently."""
    spaces = method.update_spaces(context)
    for space in spaces.values():
        coordinates = [space.outputs.vectors_II, space.inputs.vectors_II, space.free_EI]
        broadcast(coordinates, run.here)
    _check_that_something_can_be_learned(spec, spaces)
    return spaces


def _statistics(method: Method, start: StartState, task: Task) -> DatasetStatistics:
    held = task.rows.held()
    if not method.needs_all_rows or held is None:
        return DatasetStatistics(start.moments)
    return DatasetStatistics(start.moments, prepared_rows(start.heads, task.pair, held))


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
    """The heads with the conditioning of modalities whose first dataset this is."""
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
        name: conditioning(all_reduce_moment(total, run.here), spec.conditioning)
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
    return all_reduce_pair_moments(total, run.here)


def _chunks(rows: TrainingRows, run: Run) -> Iterator[PairedRows]:
    """This rank's rows on its device, reported to the watcher.

    Ends with a barrier: ranks read independently, and take different times.
    """
    done, own = 0, len(rows) // run.here.size
    for raw in rows.chunks(run.here):
        yield raw.to(run.device)
        done += len(raw)
        run.watcher.rows_read(done, own)
    barrier(run.here)


def _near_the_mean(rows_NI: Tensor) -> Tensor:
    """The mean of some rows, 0 for the constant 1, which must not be shifted."""
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
    if method.needs_all_rows and task.rows.held() is None:
        raise InvalidDataset(
            f"the method {spec.method!r} needs all rows of a dataset in memory, and {len(task.rows)} "
            "rows are too many for it; split the dataset, or use a model with the method 'nullspace'"
        )


def _check_that_something_can_be_learned(
    spec: ModelSpec, spaces: Mapping[str, UpdateSpace]
) -> None:
    """Raises NothingToLearn instead of training a version that would equal its parent."""
    if not any(bool(space.free_EI.any()) for space in spaces.values()):
        blocked = sum(space.free_EI.numel() for space in spaces.values())
        raise NothingToLearn(
            f"nothing can be learned: all {blocked} entries of the heads "
            f"{' and '.join(spaces)} (100 %) are blocked by what was learned before; use a larger "
            f"width (now {spec.width}) or a smaller protection.kept_energy "
            f"(now {spec.protection.energy:g}) in a new model"
        )
