"""Train one more dataset on the state of a model. No storage, no jobs, no Ray.

The training job (`job.py`) and the benchmarks run this code.
Shapes: N rows, F and G raw widths, I and J widths of what the two heads read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from cmcl.contract.errors import InvalidDataset, NothingToLearn, TrainingDiverged
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import Shrinkage
from workers.methods.method import (
    DatasetStatistics,
    Method,
    MethodState,
    Solved,
    TrainingContext,
)
from workers.methods.registry import method_for
from workers.model.artifact import moment_tensors, moments_from
from workers.model.heads import ModalityHeads, initial_heads
from workers.model.memory import Memory
from workers.nullspace.centred import dataset_moments
from workers.nullspace.closed_form import NO_VARIANCE
from workers.nullspace.conditioning import Conditioning
from workers.nullspace.mask import UpdateSpace
from workers.nullspace.moments import (
    PairMoments,
)
from workers.nullspace.subspace import EigenBasis
from workers.nullspace.two_folds import Choice
from workers.train.certify import (
    PastDataset,
    cost_of_step,
    limit_drift,
    limit_step,
    shrinkage,
)
from workers.train.data.rows import RotatedRows, TrainingRows
from workers.train.distributed import (
    broadcast,
    side_by_side,
)
from workers.train.loop import (
    TrainedPair,
    mean_loss,
    new_heads,
    rotation_of,
    train_pair,
)
from workers.train.run import Run, Tensors, part_of
from workers.train.sums import chunks, conditioned, prepared_rows, summed_halves

Attainable = Callable[[PairMoments], float | None]
"""`nullspace.certificate.attainable` at the width of the heads, or None for it."""


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
    """The outcome of training one dataset. `spaces` is empty if heads were solved.

    `choice`: by the two halves, where all heads are solved; ridges in the order of the pair. `attainable`: of the
    moments at the width of the heads (`nullspace.certificate`), once it is computed.
    """

    model_state: ModelState
    moments: PairMoments
    spaces: Mapping[str, UpdateSpace]
    trained: TrainedPair | Solved
    shrinkage: Shrinkage | None
    choice: Choice | None = None
    attainable: float | None = None


@dataclass(frozen=True)
class StartState:
    """Everything that is computed before the first update and constant afterwards.

    The parent's heads with the conditioning of new modalities and the weights that the method starts from, the
    dataset's moments, and the update spaces (empty until they are computed). It is part of every checkpoint, so that
    a run that continues need not compute it again.
    """

    heads: ModalityHeads
    moments: PairMoments
    spaces: Mapping[str, UpdateSpace] = field(default_factory=dict)

    def tensors(self) -> Tensors:
        """Moments, and the weights, conditioning and update spaces of the pair."""
        named = {f"moments/{name}": each for name, each in moment_tensors(self.moments).items()}
        for modality, space in self.spaces.items():
            conditioning = self.heads.conditioning[modality]
            parts = {
                **conditioning.tensors,
                "weight": self.heads.weights[modality],
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
        spaces, conditionings, weights = {}, {}, {}
        for modality in pair.modalities:
            parts = part_of(saved, f"spaces/{modality}")
            conditionings[modality] = Conditioning.of(parts)
            weights[modality] = parts["weight"]
            outputs = EigenBasis(parts["output_vectors"], parts["output_values"])
            inputs = EigenBasis(parts["input_vectors"], parts["input_values"])
            spaces[modality] = UpdateSpace(outputs, inputs, parts["free"])
        moments = moments_from(part_of(saved, "moments"))
        return cls(parent.conditioned(conditionings).replaced(weights), moments, spaces)


def initial_state(spec: ModelSpec) -> ModelState:
    """The state before the first dataset: a function of the spec."""
    return ModelState(initial_heads(spec))


def learn(
    spec: ModelSpec,
    before: ModelState,
    task: Task,
    run: Run | None = None,
    method: Method | None = None,
    attainable: Attainable | None = None,
) -> TrainingResult:
    """Train one more dataset, with `method` or the one that the spec names.

    The result is the same on every rank, but for the memory of a method that `solves`: rank 0 has it. Nothing but
    checkpoints is written. `attainable`: if it is given, it is computed from the dataset's moments while rank 0 solves.
    """
    run, method = run or Run(), method or method_for(spec)
    _check_rows(spec, method, task)
    beside = attainable or (lambda _: None)
    if method.solves:
        return _solve(spec, method, before, task, run, beside)
    saved = run.checkpoints.newest(run.here)
    if saved:
        start = _resumed(before, task, run, saved)
        _, best = side_by_side(lambda: None, lambda: beside(start.moments), run.here)
    else:
        start, solved, best = _begun(spec, method, before, task, run, beside)
        if solved:
            context = _context(spec, before, start.heads, task, run)
            after = _after(method, context, start, start.heads, task)
            return TrainingResult(after, start.moments, {}, solved, None, attainable=best)
    context = _context(spec, before, start.heads, task, run)
    spaces = start.spaces or _update_spaces(spec, method, context, run)
    run.checkpoints.begin(replace(start, spaces=spaces).tensors())

    run.watcher.enter("training")
    rows = RotatedRows(task.rows, rotation_of(context, spaces, run.device))
    trained = train_pair(method, context, spaces, rows, run, saved)

    run.watcher.enter("limiting")
    limited = limit_drift(spec, context, spaces, trained.changes, task.past, run.here)
    heads = new_heads(context, spaces, limited.changes)
    heads = heads.replaced(method.finish(context, heads))
    loss_of = partial(mean_loss, context, spaces, rows, run)
    cost = shrinkage(limited.shrunk, loss_of, trained.changes, limited.changes)
    after = _after(method, context, start, heads, task)
    return TrainingResult(after, start.moments, spaces, trained, cost, attainable=best)


def _after(
    method: Method, context: TrainingContext, start: StartState, heads: ModalityHeads, task: Task
) -> ModelState:
    """The state of the version with these heads."""
    method_state = method.next_state(context, heads, _statistics(method, start, task))
    return ModelState(heads, context.memory.with_dataset(task.pair, start.moments), method_state)


def _context(
    spec: ModelSpec, before: ModelState, heads: ModalityHeads, task: Task, run: Run
) -> TrainingContext:
    return TrainingContext(
        heads, before.memory, before.method_state, task.pair, spec.training, task.seed, run.recipe
    )


def _solve(
    spec: ModelSpec, method: Method, before: ModelState, task: Task, run: Run, beside: Attainable
) -> TrainingResult:
    """Heads from moments. Rank 0 solves: CPUs may round an eigenvector differently."""
    run.watcher.enter("moments")
    halves = summed_halves(before.heads, task.pair, task.rows, run)
    moments = halves[0] + halves[1]
    _check_that_sides_vary(task.pair, moments)

    run.watcher.enter("training")
    context = _context(spec, before, before.heads, task, run)
    memory = before.memory

    def solved_with_choice() -> tuple[Choice, Solved]:
        nonlocal memory
        choice = method.choose(halves)
        ridges = dict(zip(task.pair.modalities, choice.ridges, strict=True))
        sums = dataset_moments(moments)
        memory = memory.with_sums(task.pair, sums, ridges, choice.significant)
        return choice, method.solve(context, memory)

    (choice, solved), best = side_by_side(solved_with_choice, lambda: beside(moments), run.here)
    check_finite(solved, spec)
    run.watcher.enter("limiting")
    limited = limit_step(spec, context, solved.weights, task.past, run.here)
    state = method.next_state(context, limited.heads, DatasetStatistics(moments))
    return TrainingResult(
        ModelState(limited.heads, memory, state),
        moments,
        {},
        solved,
        cost_of_step(context, limited, solved.weights, task.rows, run),
        choice,
        best,
    )


def check_finite(solved: Solved, spec: ModelSpec) -> None:
    """Raises TrainingDiverged if heads have entries that are not finite."""
    if not all(bool(weight_EI.isfinite().all()) for weight_EI in solved.weights.values()):
        raise TrainingDiverged(
            f"the polish of the heads diverged, its last loss is {solved.final_loss}; create a model "
            f"with a larger training.temperature (now {spec.training.temperature:g})"
        )


def _begun(
    spec: ModelSpec, method: Method, before: ModelState, task: Task, run: Run, beside: Attainable
) -> tuple[StartState, Solved | None, float | None]:
    """Two passes over the rows, or one if both modalities are conditioned: condition, then sum.

    Returns `Solved`, too, if the method solved the heads in place of training them; both are those of rank 0. And what
    was computed beside.
    """
    heads = conditioned(spec, before.heads, task.pair, task.rows, run)
    run.watcher.enter("moments")
    halves = summed_halves(heads, task.pair, task.rows, run)
    moments = halves[0] + halves[1]
    _check_that_sides_vary(task.pair, moments)
    context = _context(spec, before, heads, task, run)
    run.watcher.enter("training")
    found, best = side_by_side(
        lambda: method.start(context, halves), lambda: beside(moments), run.here
    )
    if not isinstance(found, Solved):
        return StartState(heads.replaced(found), moments), None, best
    check_finite(found, spec)
    return StartState(heads.replaced(found.weights), moments), found, best


def _check_that_sides_vary(pair: ModalityPair, moments: PairMoments) -> None:
    """Raises NothingToLearn: which rows belong together cannot be learned from features that are all equal."""
    for modality, side in zip(pair.modalities, (moments.first, moments.second), strict=True):
        # Of x̃ = [x, 1]: tr E x xᵀ − |E x|².
        squares_F = side.sum_II.diagonal()[:-1] / side.count
        mean_F = side.sum_II[:-1, -1] / side.count
        variance = float(squares_F.sum() - mean_F.square().sum())
        if variance <= NO_VARIANCE:
            raise NothingToLearn(no_variance(modality, variance))


def no_variance(modality: str, variance: float) -> str:
    """Say that a dataset with such a side is refused."""
    return (
        f"all rows of the dataset have the same feature of {modality!r}, to rounding (at unit length their "
        f"variance is {max(variance, 0.0):.1g}, and has to be above {NO_VARIANCE:g}): check the column, or "
        "scale or centre features of which one entry is far larger than the rest"
    )


def _resumed(before: ModelState, task: Task, run: Run, saved: Tensors) -> StartState:
    """The start state of an interrupted run, without its passes over the rows."""
    if task.rows.held() is None:
        for _ in chunks(task.rows, run):
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
            "rows are too many for it; split the dataset, or use a model with a policy"
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
            f"width (now {spec.width}) or a smaller kept_energy "
            f"(now {spec.kept_energy:g}) in a new model"
        )
