"""Train one more dataset on the state of a model. No storage, no jobs, no Ray.

The training job (`job.py`) and the benchmarks run this code.
Shapes: B rows of a chunk, N all rows, F and G raw widths, I and J widths of what the two heads read.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from cmcl.contract.errors import InvalidDataset, NothingToLearn, TrainingDiverged
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import Shrinkage
from workers.methods.method import DatasetStatistics, Method, MethodState, Solved, TrainingContext
from workers.methods.registry import method_for
from workers.model.artifact import moment_tensors, moments_from
from workers.model.heads import (
    EXACT_BELOW,
    ModalityHeads,
    PairedRows,
    head_width,
    initial_heads,
    unit_rows,
    with_constant,
)
from workers.model.loss import unit
from workers.model.memory import Memory
from workers.nullspace.centred import dataset_moments
from workers.nullspace.closed_form import NO_VARIANCE
from workers.nullspace.conditioning import Conditioning, centring, conditioning
from workers.nullspace.mask import UpdateSpace
from workers.nullspace.moments import PairMoments, SecondMoment, moment_about, no_pairs, no_rows
from workers.nullspace.query_drift import WIDTH, projected, sums_of_halves
from workers.nullspace.subspace import EigenBasis
from workers.nullspace.two_folds import Choice
from workers.train.certify import PastDataset, cost_of_step, limit_drift, limit_step, shrinkage
from workers.train.distributed import (
    all_reduce_moment,
    all_reduce_pair_moments,
    all_reduce_sum,
    barrier,
    broadcast,
    side_by_side,
    when_leader_is_done,
)
from workers.train.loop import TrainedPair, mean_loss, new_heads, rotation_of, train_pair
from workers.train.rows import RotatedRows, TrainingRows
from workers.train.run import Run, Tensors, part_of

Projections = Mapping[str, Tensor]
"""By modality, what queries are compared with (`nullspace.query_drift.sums_of_halves`)."""
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

    `halves`: of the moments, exact, and `digests` of the rows, where the model is erasable. `choice`: by the two halves, where all heads are solved; ridges in the order of the pair. `attainable`: of the
    moments at the width of the heads (`nullspace.certificate`), once it is computed.
    """

    model_state: ModelState
    moments: PairMoments
    projections: Projections
    spaces: Mapping[str, UpdateSpace]
    trained: TrainedPair | Solved
    shrinkage: Shrinkage | None
    choice: Choice | None = None
    attainable: float | None = None
    halves: tuple[PairMoments, PairMoments] | None = None
    digests: Tensor | None = None


@dataclass(frozen=True)
class StartState:
    """Everything that is computed before the first update and constant afterwards.

    The parent's heads with the conditioning of new modalities and the weights that the method starts from, the
    dataset's moments and projections, and the update spaces (empty until they are computed). It is part of every checkpoint, so that
    a run that continues need not compute it again.
    """

    heads: ModalityHeads
    moments: PairMoments
    projections: Projections
    spaces: Mapping[str, UpdateSpace] = field(default_factory=dict)

    def tensors(self) -> Tensors:
        """Moments, projections, and the weights, conditioning and update spaces of the pair."""
        named = {f"moments/{name}": each for name, each in moment_tensors(self.moments).items()}
        named |= {f"projections/{name}": each for name, each in self.projections.items()}
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
    def from_tensors(
        cls, saved: Tensors, parent: ModalityHeads, pair: ModalityPair
    ) -> "StartState":
        """From the tensors of a checkpoint."""
        spaces, conditionings, weights = {}, {}, {}
        for modality in pair.modalities:
            parts = part_of(saved, f"spaces/{modality}")
            conditionings[modality] = Conditioning.from_tensors(parts)
            weights[modality] = parts["weight"]
            outputs = EigenBasis(parts["output_vectors"], parts["output_values"])
            inputs = EigenBasis(parts["input_vectors"], parts["input_values"])
            spaces[modality] = UpdateSpace(outputs, inputs, parts["free"])
        moments = moments_from(part_of(saved, "moments"))
        heads = parent.conditioned(conditionings).replaced(weights)
        return cls(heads, moments, part_of(saved, "projections"), spaces)


def initial_state(spec: ModelSpec) -> ModelState:
    """The state before the first dataset: a function of the spec."""
    return ModelState(initial_heads(spec))


def learn(
    spec: ModelSpec,
    before: ModelState,
    task: Task,
    run: Run | None = None,
    method: Method | None = None,
    attainable: Attainable = lambda _: None,
) -> TrainingResult:
    """Train one more dataset, with `method` or the one that the spec names.

    The result is the same on every rank, but for the memory of a method that `solves`: rank 0 has it. Nothing but
    checkpoints is written. `attainable` is computed from the dataset's moments while rank 0 solves.
    """
    run, method = run or Run(), method or method_for(spec)
    _check_rows(spec, method, task)
    learn_dataset = _solve if method.solves else _train
    return learn_dataset(spec, method, before, task, run, attainable)


def _solve(
    spec: ModelSpec,
    method: Method,
    before: ModelState,
    task: Task,
    run: Run,
    attainable: Attainable,
) -> TrainingResult:
    """Heads from moments. Rank 0 solves: CPUs may round an eigenvector differently."""
    heads = before.heads
    if spec.solves and spec.centred:
        heads = condition_new_modalities(spec, heads, task.pair, task.rows, run, centring)
    halves, moments, projections = _sum_moments(heads, task, run, exact=spec.erasable)

    run.watcher.enter("training")
    context = _context(spec, before, heads, task, run)
    memory = before.memory

    def solve() -> tuple[Choice, Solved]:
        nonlocal memory
        choice = method.choose(task.pair, halves)
        ridges = choice.by_modality(task.pair.modalities, spec.aligned(task.pair))
        sums = dataset_moments(moments)
        memory = memory.with_sums(task.pair, sums, ridges, choice.significant)
        return choice, method.solve(context, memory)

    (choice, solved), best = side_by_side(solve, lambda: attainable(moments), run.here)
    check_finite(solved, spec)

    run.watcher.enter("limiting")
    heads, shrunk = limit_step(spec, context, solved.weights, task.past, run.here)
    cost = cost_of_step(context, shrunk, solved.weights, heads, task.rows, run)
    state = method.next_state(context, heads, DatasetStatistics(moments))
    after = ModelState(heads, memory, state)
    kept = halves if spec.erasable else None
    return TrainingResult(after, moments, projections, {}, solved, cost, choice, best, kept)


def _train(
    spec: ModelSpec,
    method: Method,
    before: ModelState,
    task: Task,
    run: Run,
    attainable: Attainable,
) -> TrainingResult:
    """Heads by updates on rows, from a checkpoint if there is one, unless the method solves this dataset's."""
    saved = run.checkpoints.newest(run.here)
    if saved:
        _fill_local_disk(task.rows, run)
        start = StartState.from_tensors(saved, before.heads, task.pair)
        best = when_leader_is_done(lambda: attainable(start.moments), run.here)
    else:
        heads = condition_new_modalities(spec, before.heads, task.pair, task.rows, run)
        halves, moments, projections = _sum_moments(heads, task, run)
        run.watcher.enter("training")
        context = _context(spec, before, heads, task, run)
        found, best = side_by_side(
            lambda: method.start(context, halves), lambda: attainable(moments), run.here
        )
        if isinstance(found, Solved):
            check_finite(found, spec)
            heads = heads.replaced(found.weights)
            context = replace(context, heads=heads)
            after = _state_after(method, context, heads, moments, task)
            return TrainingResult(after, moments, projections, {}, found, None, attainable=best)
        start = StartState(heads.replaced(found), moments, projections)
    context = _context(spec, before, start.heads, task, run)
    spaces = start.spaces or _update_spaces(spec, method, context, run)
    run.checkpoints.set_start(replace(start, spaces=spaces).tensors())

    run.watcher.enter("training")
    rows = RotatedRows(task.rows, rotation_of(context, spaces, run.device))
    trained = train_pair(method, context, spaces, rows, run, saved)

    run.watcher.enter("limiting")
    changes, shrunk = limit_drift(spec, context, spaces, trained.changes, task.past, run.here)
    loss_of = partial(mean_loss, context, spaces, rows, run)
    cost = shrinkage(shrunk, loss_of, trained.changes, changes)
    heads = new_heads(context, spaces, changes)
    heads = heads.replaced(method.finish(context, heads))
    after = _state_after(method, context, heads, start.moments, task)
    sums = start.moments, start.projections
    return TrainingResult(after, *sums, spaces, trained, cost, attainable=best)


def _context(
    spec: ModelSpec, before: ModelState, heads: ModalityHeads, task: Task, run: Run
) -> TrainingContext:
    return TrainingContext(
        heads, before.memory, before.method_state, task.pair, spec.training, task.seed, run.recipe
    )


def _state_after(
    method: Method,
    context: TrainingContext,
    heads: ModalityHeads,
    moments: PairMoments,
    task: Task,
) -> ModelState:
    """The state of the version with these heads. `context`: with the heads that training started from."""
    rows = task.rows.in_memory() if method.needs_all_rows else None
    prepared = None if rows is None else prepare_rows(context.heads, task.pair, rows)
    statistics = DatasetStatistics(moments, prepared)
    method_state = method.next_state(context, heads, statistics)
    return ModelState(heads, context.memory.with_dataset(task.pair, moments), method_state)


def _update_spaces(
    spec: ModelSpec, method: Method, context: TrainingContext, run: Run
) -> Mapping[str, UpdateSpace]:
    """The update spaces of rank 0 on all ranks: CPUs may round an eigenpair differently."""
    spaces = method.update_spaces(context)
    for space in spaces.values():
        bases = (space.outputs, space.inputs)
        pairs = [part for basis in bases for part in (basis.vectors_II, basis.values_I)]
        broadcast([*pairs, space.free_EI], run.here)
    _check_that_something_can_be_learned(spec, spaces)
    return spaces


# --- Passes over the rows ------------------------------------------------------------------------


def prepare_rows(heads: ModalityHeads, pair: ModalityPair, raw: PairedRows) -> PairedRows:
    """Rows as the heads read them, on the device of the raw ones."""
    return replace(
        raw,
        first_NI=heads.prepare(pair.first, raw.first_NI),
        second_NJ=heads.prepare(pair.second, raw.second_NJ),
    )


def projections_of_halves(raw: PairedRows) -> Tensor:
    """Sums of projections (`nullspace.query_drift`) of both sides, in both halves (2 × 2 × I × I)."""
    # In float64, so that a row alone has the bits that it has among others.
    sides = (projected(unit(side.double())) for side in (raw.first_NI, raw.second_NJ))
    return torch.stack([sums_of_halves(rows_BI, raw.in_second_half_N) for rows_BI in sides])


def exact_rows(heads: ModalityHeads, pair: ModalityPair, raw: PairedRows) -> PairedRows:
    """`prepare_rows` in float64, so coarse that sums of their products are exact."""
    return replace(
        raw,
        first_NI=heads.exact(pair.first, raw.first_NI),
        second_NJ=heads.exact(pair.second, raw.second_NJ),
    )


def condition_new_modalities(
    spec: ModelSpec,
    heads: ModalityHeads,
    pair: ModalityPair,
    rows: TrainingRows,
    run: Run,
    from_moment: Callable[[SecondMoment], Conditioning] = conditioning,
) -> ModalityHeads:
    """The heads with the conditioning of modalities whose first dataset this is: one pass over the rows."""
    new = [modality for modality in pair.modalities if modality not in heads.conditioning]
    if not new:
        return heads
    run.watcher.enter("reading")
    totals = {name: no_rows(head_width(spec.widths[name])) for name in new}
    shifts: dict[str, Tensor] = {}
    for raw in _chunks(rows, run):
        sides = dict(zip(pair.modalities, (raw.first_NI, raw.second_NJ), strict=True))
        for name in new:
            rows_NI = with_constant(unit_rows(sides[name]))
            shift_I = shifts.setdefault(name, _near_the_mean(rows_NI))
            totals[name] += moment_about(rows_NI, shift_I).cpu()
    conditionings = {
        name: from_moment(all_reduce_moment(total, run.here)) for name, total in totals.items()
    }
    broadcast([part for each in conditionings.values() for part in each.tensors.values()], run.here)
    return heads.conditioned(conditionings)


def moments_of_halves(
    heads: ModalityHeads,
    pair: ModalityPair,
    rows: TrainingRows,
    run: Run,
    add_raw: Callable[[PairedRows], None] = lambda _: None,
    *,
    exact: bool = False,
) -> tuple[PairMoments, PairMoments]:
    """The moments of the two halves of all rows (`PairedRows.halves`) as the heads read them.

    Products are of what rows differ by from a shift near their mean, see `moment_about`: features of some encoders
    hardly differ, and rounding of their products would be larger than their covariance. `add_raw` gets this rank's rows
    as they are, for other sums in the same pass. `exact`: sums of `ModalityHeads.exact` rows, of the same bits in any
    order, from which a row can be taken back.
    """
    own, other = (heads.weights[modality].shape[1] for modality in pair.modalities)
    totals = [no_pairs(own, other, run.device), no_pairs(own, other, run.device)]
    shifts: tuple[Tensor, Tensor] | None = None
    for raw in _chunks(rows, run):
        add_raw(raw)
        read = exact_rows(heads, pair, raw) if exact else prepare_rows(heads, pair, raw)
        if shifts is None and not exact:
            shifts = _near_the_mean(read.first_NI), _near_the_mean(read.second_NJ)
        for number, half in enumerate(read.halves()):
            sides = half.first_NI, half.second_NJ
            if shifts is not None:
                # In place: the rows of a half are a copy.
                sides = sides[0].sub_(shifts[0]), sides[1].sub_(shifts[1])
            totals[number] = totals[number].add_rows_(*sides)
    if shifts is not None:
        for total in totals:
            # Of this rank alone: another one has another shift.
            total.move_(*shifts)
    first, second = (all_reduce_pair_moments(total.cpu(), run.here) for total in totals)
    return first, second


def _sum_moments(
    heads: ModalityHeads, task: Task, run: Run, *, exact: bool = False
) -> tuple[tuple[PairMoments, PairMoments], PairMoments, Projections]:
    """The moments of the two halves of the rows, and of all; and projections. Raises NothingToLearn, and InvalidDataset
    for too many rows to be summed exactly."""
    run.watcher.enter("moments")
    sums_S2II = torch.zeros(2, 2, WIDTH + 1, WIDTH + 1, dtype=torch.float64, device=run.device)

    def add_raw(raw: PairedRows) -> None:
        sums_S2II.add_(projections_of_halves(raw))

    halves = moments_of_halves(heads, task.pair, task.rows, run, add_raw, exact=exact)
    moments = halves[0] + halves[1]
    assert moments.count == len(task.rows), "a row was left out, or summed twice"
    largest = max(float(each.sum_II.abs().max()) for each in (moments.first, moments.second))
    if exact and largest >= EXACT_BELOW:
        raise InvalidDataset(
            f"a sum of squares of the dataset is {largest:.3g}, and has to be below {EXACT_BELOW:g} to be exact, as an "
            "erasable model needs it: split the dataset"
        )
    _check_that_sides_vary(task.pair, moments)
    total = torch.tensor(all_reduce_sum(sums_S2II.flatten(), run.here), dtype=torch.float64)
    sides = total.view_as(sums_S2II).unbind()
    assert all(int(each_2II[:, -1, -1].sum()) == moments.count for each_2II in sides)
    return halves, moments, dict(zip(task.pair.modalities, sides, strict=True))


def _fill_local_disk(rows: TrainingRows, run: Run) -> None:
    """Read rows that are not in memory once, as a pass over them does, so that batches can be read."""
    if rows.in_memory() is None:
        for _ in _chunks(rows, run):
            pass


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


# --- What cannot be learned ----------------------------------------------------------------------


def _check_rows(spec: ModelSpec, method: Method, task: Task) -> None:
    """Raises NothingToLearn for too few rows, InvalidDataset for too many."""
    if len(task.rows) < spec.fewest_rows:
        raise NothingToLearn(too_few_rows(len(task.rows), spec))
    if method.needs_all_rows and task.rows.in_memory() is None:
        raise InvalidDataset(
            f"the method {spec.method!r} needs all rows of a dataset in memory, and {len(task.rows)} "
            "rows are too many for it; split the dataset, or use a model with a policy"
        )


def too_few_rows(rows: int, spec: ModelSpec) -> str:
    """Say that a dataset of so few rows is refused."""
    if spec.solves:
        return f"the dataset has {rows} rows, and at least {spec.fewest_rows} are needed"
    return (
        f"the dataset has {rows} rows and one batch takes {spec.fewest_rows}: use more rows, a smaller "
        "training.batch_size, or a model with the policy improve, which needs no batch"
    )


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


def check_finite(solved: Solved, spec: ModelSpec) -> None:
    """Raises TrainingDiverged if heads have entries that are not finite."""
    if not all(bool(weight_EI.isfinite().all()) for weight_EI in solved.weights.values()):
        raise TrainingDiverged(
            f"the polish of the heads diverged, its last loss is {solved.final_loss}; create a model "
            f"with a larger training.temperature (now {spec.training.temperature:g})"
        )
