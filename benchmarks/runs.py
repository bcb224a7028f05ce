"""Runs: one method with one seed each, distributed over single-threaded processes.

A failed run is reported and does not affect others. If a process is killed (out of memory), the
runs that were lost with it are repeated, each in a separate process.
"""

import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from typing import Any, get_args

import torch

from benchmarks.baselines import BASELINES
from benchmarks.chain import Outcome, run_chain
from benchmarks.folder import Source, Stream, read_stream
from benchmarks.joint import JointOutcome, JointSetting, learn_alone, train_jointly
from cmcl.contract.methods import BUILT_IN_METHODS, installed_methods
from cmcl.contract.model import ModelSpec, Policy
from workers.methods.registry import method_class
from workers.nullspace.threads import one_thread

JOINT = "joint"
# Each dataset in a model of its own.
ALONE = "alone"
# Ceilings: joint training from the initial heads and from the closed form.
JOINT_SETTINGS: Mapping[str, JointSetting] = {
    JOINT: JointSetting(),
    "joint_averaged": JointSetting(averaged=True),
    "joint_from_closed_form": JointSetting(averaged=True, from_closed_form=True),
}


def known_methods() -> tuple[str, ...]:
    """Return the product's policies and methods, baselines, ceilings, and methods of installed packages."""
    built_in = (*get_args(Policy), *BUILT_IN_METHODS)
    return (*built_in, *BASELINES, *JOINT_SETTINGS, ALONE, *installed_methods())


def place_of(method: str) -> str | None:
    """Return `module:Class` of a baseline or of a method given in that form, else None."""
    return method if ":" in method else BASELINES.get(method)


@dataclass(frozen=True)
class Run:
    """One method with one seed. `joint_epochs`: epochs after which joint training is evaluated."""

    method: str
    spec: ModelSpec
    joint_epochs: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.method}, seed {self.spec.seed}"


@dataclass(frozen=True)
class Failed:
    """A failed run: the error in one line, and the traceback."""

    words: str
    trace: str


Result = Outcome | JointOutcome | Failed


def spec_of(method: str, model: Mapping[str, Any]) -> ModelSpec:
    """Return the product's spec for a method name; `model` has all other fields.

    Ceilings use the spec of the product's default. A
    method given as `module:Class` has the name of its class.
    """
    if ":" in method:
        method = method.rpartition(":")[2].strip("_").lower()
    if method in get_args(Policy):
        return ModelSpec.model_validate({**model, "policy": method})
    chosen = {} if method in (*JOINT_SETTINGS, ALONE) else {"method": method}
    return ModelSpec.model_validate({**model, **chosen})


def perform(stream: Stream, run: Run) -> Result:
    """Do one run in this process."""
    try:
        if setting := JOINT_SETTINGS.get(run.method):
            return train_jointly(stream.datasets, run.spec, run.joint_epochs, setting)
        if run.method == ALONE:
            return learn_alone(stream.datasets, run.spec)
        place = place_of(run.method)
        method = None if place is None else method_class(place).from_spec(run.spec)
        return run_chain(stream.datasets, run.spec, method)
    except Exception as error:  # noqa: BLE001 (a failed run must not end the others)
        return Failed(f"{type(error).__name__}: {error}", traceback.format_exc())


def perform_all(
    stream: Stream, source: Source, runs: Sequence[Run], jobs: int
) -> Iterator[tuple[Run, Result]]:
    """Yield results as they complete. Other processes read the stream from `source`."""
    if jobs == 1:
        # As in the other processes, so that results are bit-equal.
        with one_thread():
            warm_up()
            yield from ((run, perform(stream, run)) for run in runs)
        return
    again = []
    for run, future in _in_processes(source, runs, jobs):
        if isinstance(future.exception(), BrokenProcessPool):
            again.append(run)
        else:
            yield run, _result(future)
    for run in again:
        ((_, future),) = _in_processes(source, [run], 1)
        yield run, _result(future)


def _in_processes(
    source: Source, runs: Sequence[Run], jobs: int
) -> Iterator[tuple[Run, "Future[Result]"]]:
    """Run in spawned processes, because a fork inherits torch's threads in an undefined state."""
    pool = ProcessPoolExecutor(
        min(jobs, len(runs)), get_context("spawn"), initializer=start_process
    )
    with pool:
        futures = {pool.submit(_perform_from, source, run): run for run in runs}
        yield from ((futures[future], future) for future in as_completed(futures))


def _result(future: "Future[Result]") -> Result:
    error = future.exception()
    if error is None:
        return future.result()
    return Failed(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


def start_process() -> None:
    """Prepare a process for runs."""
    torch.set_num_threads(1)
    warm_up()


def warm_up() -> None:
    """Construct an optimizer, so that its import of torch's compiler does not count for the first
    run."""
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight], fused=True).step()


def _perform_from(source: Source, run: Run) -> Result:
    return perform(_read_once(source), run)


@cache
def _read_once(source: Source) -> Stream:
    """Read the stream once per process."""
    return read_stream(*source)
