"""One encoder, method and seed through the eleven steps."""

import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

from torch import Tensor

from benchmarks.chain import Dataset, learn_one, remember
from benchmarks.joint import joint_heads
from benchmarks.paper.features import StepData, read_features, steps_of
from benchmarks.paper.metrics import measure_all
from benchmarks.paper.protocol import FAMILIES, Preset, recipe, training_settings
from benchmarks.paper.results import Cell, CellResult, keep_result, read_result
from benchmarks.paper.sources.source import InvalidSource
from benchmarks.paper.unscaled import (
    PublishedUpdate,
    published_start,
    radii,
    unscaled_steps,
)
from benchmarks.runs import (
    JOINT_SETTINGS,
    known_methods,
    place_of,
    spec_of,
    start_process,
    warm_up,
)
from cmcl.contract.errors import TrainingDiverged
from cmcl.contract.model import ModelSpec
from workers.methods.method import Method, Recipe
from workers.methods.registry import method_class, method_for
from workers.model.heads import ModalityHeads, PairedRows
from workers.nullspace.threads import one_thread
from workers.train.certify import PastDataset
from workers.train.evaluation import HeldOut
from workers.train.learn import ModelState, initial_state
from workers.train.rows import BatchPlan

# The features of the encoders, scaled to unit length and nothing else.
UNTRAINED = "untrained"
# A ceiling of the stream benchmark that has no heads for all steps.
_NOT_HERE = {"alone"}


def paper_methods() -> tuple[str, ...]:
    """Names of all methods: those of the stream benchmark, and the encoders alone."""
    return (UNTRAINED, *(name for name in known_methods() if name not in _NOT_HERE))


def run_all(cells: Sequence[Cell], folder: Path, jobs: int) -> Iterator[tuple[Cell, CellResult]]:
    """Yield the results of all cells as they end, and keep them. Kept ones come first."""
    left = []
    for cell in cells:
        kept = read_result(folder, cell)
        if kept is None:
            left.append(cell)
        else:
            yield cell, kept
    folder.mkdir(parents=True, exist_ok=True)
    if jobs == 1 or len(left) < 2:
        with one_thread():
            warm_up()
            yield from ((cell, keep_result(folder, cell, run_cell(cell))) for cell in left)
        return
    with ProcessPoolExecutor(
        min(jobs, len(left)), get_context("spawn"), initializer=start_process
    ) as pool:
        futures = {pool.submit(run_cell, cell): cell for cell in left}
        for future in as_completed(futures):
            error = future.exception()
            result = _failed(error) if error else future.result()
            yield futures[future], keep_result(folder, futures[future], result)


def _failed(error: BaseException) -> CellResult:
    return CellResult([], 0.0, [], f"{type(error).__name__}: {error}")


def run_cell(cell: Cell) -> CellResult:
    """Run one cell in this process. An error is a result."""
    try:
        return _run(cell, _steps(cell.features))
    except Exception as error:  # noqa: BLE001 (a failed cell must not end the others)
        traceback.print_exc()
        return _failed(error)


@lru_cache(maxsize=1)
def _steps(features: tuple[tuple[str, str, str], ...]) -> list[StepData]:
    """Read the features once for all cells in a row that use them."""
    return steps_of({source: read_features(Path(path)) for source, path, _ in features})


def _run(cell: Cell, steps: list[StepData]) -> CellResult:
    spec = spec_for(cell, steps)
    if cell.method == UNTRAINED:
        heads = initial_state(spec).heads
        row = measure_all(partial(_unit, heads), steps, cell.seed)
        return CellResult([row], 0.0, [])
    if cell.method in JOINT_SETTINGS:
        return _joint(cell, spec, steps)
    method = method_of(cell, spec)
    if cell.preset == "paper" and not method.solves:
        return _published(cell, spec, steps, method)
    if cell.preset == "paper":
        # A method in closed form keeps the product's settings, its temperature among them.
        spec = spec_for(replace(cell, preset="product"), steps)
        method = method_of(cell, spec)
    return _chain(cell, spec, steps, initial_state(spec), [method] * len(steps), Recipe())


def spec_for(cell: Cell, steps: Sequence[StepData]) -> ModelSpec:
    """The spec of a cell: square heads. Raises InvalidSource if a step has fewer rows than a batch."""
    family = FAMILIES[cell.family]
    preset: Preset = "product" if cell.method in JOINT_SETTINGS else cell.preset
    given = dict(cell.training)
    settings = {**training_settings(preset, family, given.pop("batch_size", None)), **given}
    modalities = {name for data in steps for name in (data.step.first, data.step.second)}
    model = {
        "width": cell.width,
        "modalities": dict.fromkeys(sorted(modalities), cell.width),
        "training": settings,
        "lift": cell.lift,
        "seed": cell.seed,
    }
    spec = spec_of("vanilla" if cell.method == UNTRAINED else cell.method, model)
    for data in steps:
        if len(data.training) < spec.training.batch_size:
            raise InvalidSource(
                f"{data.step.name}: {len(data.training)} train rows, and one batch takes "
                f"{spec.training.batch_size}: get the rest of {data.step.source}, or use a smaller --batch-size"
            )
    return spec


def method_of(cell: Cell, spec: ModelSpec) -> Method:
    """The method, with the threshold of the encoder where it has one."""
    place = place_of(cell.method)
    method = method_for(spec) if place is None else method_class(place).from_spec(spec)
    if cell.preset == "paper" and cell.method == "paper":
        # The text's threshold, of both sides.
        threshold = FAMILIES[cell.family].text_threshold
        method = replace(method, input_threshold=threshold, output_threshold=threshold)  # type: ignore[type-var]
    return method


def _published(cell: Cell, spec: ModelSpec, steps: list[StepData], method: Method) -> CellResult:
    """The published protocol: raw features, one direction, linear decay, clipping."""
    lengths = radii(steps)
    widened = {name: width + 1 for name, width in spec.widths.items()}
    spec = ModelSpec.model_validate({**spec.model_dump(), "modalities": widened})
    unscaled = unscaled_steps(steps, lengths)
    plan = BatchPlan(spec.training.batch_size, spec.training.epochs, 0)
    methods = [PublishedUpdate(method, plan.updates(len(data.training))) for data in unscaled]
    state = published_start(spec, lengths)
    return _chain(cell, spec, unscaled, state, methods, recipe("paper"))


def _chain(
    cell: Cell,
    spec: ModelSpec,
    steps: Sequence[StepData],
    state: ModelState,
    methods: Sequence[Method],
    recipe: Recipe,
) -> CellResult:
    """Learn the steps in order, and measure all of them after each."""
    past, matrix, seconds = tuple[PastDataset, ...](), [], []
    embed = _unit if recipe.unit_length else _raw
    for data, method in zip(steps, methods, strict=True):
        dataset, began = _dataset(data), time.process_time()
        try:
            learned = learn_one(spec, state, dataset, past, method, recipe)
        except TrainingDiverged as error:
            raise ArithmeticError(f"{data.step.name}: {error}") from error
        seconds.append(time.process_time() - began)
        state, past = learned.model_state, (*past, remember(dataset, learned))
        matrix.append(measure_all(partial(embed, state.heads), steps, cell.seed))
    return CellResult(matrix, sum(seconds), seconds)


def _joint(cell: Cell, spec: ModelSpec, steps: Sequence[StepData]) -> CellResult:
    began = time.process_time()
    setting = JOINT_SETTINGS[cell.method]
    stream = [_dataset(data) for data in steps]
    for _, heads in joint_heads(stream, spec, [cell.joint_epochs], setting):
        seconds = time.process_time() - began
        return CellResult(
            [measure_all(partial(_unit, heads), steps, cell.seed)], seconds, [seconds]
        )
    raise AssertionError("joint training yields its last epoch")


def _dataset(data: StepData) -> Dataset:
    test = data.test
    keys_N = data.training.first_keys_N[:0]
    held_out = HeldOut(PairedRows(test.first_NF, test.second_NF, keys_N, keys_N), None)
    return Dataset(data.step.name, data.step.pair, data.training, held_out)


def _unit(heads: ModalityHeads, modality: str, raw_NF: Tensor) -> Tensor:
    return heads.embed(modality, raw_NF)


def _raw(heads: ModalityHeads, modality: str, raw_NF: Tensor) -> Tensor:
    return heads.outputs(modality, raw_NF)
