"""Datasets from POST to the first answer of their version, on a whole local stack, phase by phase.

The seconds of a phase are those that the product itself records (GET /v1/jobs/{job}/phases). Before them comes `post`,
and after them `pointer`, until `live.json` names the version, and `answer`, until the endpoint answers with it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chain import Dataset, learn_one, remember
from benchmarks.command_line import log_progress
from cmcl.client import Client, CmclError
from cmcl.client.endpoint import Inputs
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.demo.run import Stream
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from cmcl.storage.versions import read_live
from workers.train.certify import PastDataset
from workers.train.learn import initial_state

# How often the store is looked at while a dataset is on its way.
_LOOK_SECONDS = 0.01
_CHECK_SECONDS = 1.0
_LONGEST_SECONDS = 600.0
# A modality, and a query of it.
Ask = tuple[str, Inputs]


@dataclass(frozen=True)
class Live:
    """A dataset that is live. `seconds`: from its POST to the first answer of its version."""

    dataset: str
    seconds: float
    phases: dict[str, float]
    written_bytes: int


@dataclass
class Learner:
    """Posts datasets to one model, and waits until the endpoint answers with their versions. `store` is a folder."""

    store: Path
    client: Client
    model: str
    version: int = field(default=0, init=False)

    def learn(
        self, name: str, pair: ModalityPair, shards: Sequence[Any], ask: Ask, **options: Any
    ) -> Live:
        """Post a dataset. Raises RuntimeError if it does not become a version."""
        self.version += 1
        written = stored_bytes(self.store)
        posted = time.time()
        accepted = self.client.add_dataset(self.model, name, pair, shards, **options)
        pointed = self._wait_for_pointer(accepted.job.id)
        answered = self._wait_for_answer(*ask)
        phases = self._phases(accepted.job.id)
        return Live(
            dataset=name,
            seconds=answered - posted,
            phases={
                "post": (accepted.job.created_at.timestamp() - posted),
                **phases,
                "pointer": pointed - accepted.job.created_at.timestamp() - sum(phases.values()),
                "answer": answered - pointed,
            },
            written_bytes=stored_bytes(self.store) - written,
        )

    def _wait_for_pointer(self, job: str) -> float:
        """Wait until `live.json` names the version; return when it was written."""
        store, path = LocalStore(self.store), self.store / layout.live_pointer(self.model)
        checked, deadline = time.monotonic(), time.monotonic() + _LONGEST_SECONDS
        while time.monotonic() < deadline:
            pointer = read_live(store, self.model)
            if pointer is not None and pointer.version >= self.version:
                return path.stat().st_mtime
            if time.monotonic() > checked + _CHECK_SECONDS:
                found, checked = self.client.job(job), time.monotonic()
                if found.has_ended and found.state != "published":
                    raise RuntimeError(f"{job} ended as {found.state}: {found.message}")
            time.sleep(_LOOK_SECONDS)
        raise RuntimeError(f"{self.model}@{self.version} was not live after {_LONGEST_SECONDS:g} s")

    def _wait_for_answer(self, modality: str, ask: Inputs) -> float:
        deadline = time.monotonic() + _LONGEST_SECONDS
        while time.monotonic() < deadline:
            # The endpoint waits for the version, for as long as it is set up to.
            with suppress(CmclError):
                self.client.embed(self.model, modality, ask, min_version=self.version)
                return time.time()
            time.sleep(_LOOK_SECONDS)
        raise RuntimeError(
            f"{self.model}@{self.version} did not answer within {_LONGEST_SECONDS:g} s"
        )

    def _phases(self, job: str) -> dict[str, float]:
        """Seconds by phase; one that the job was in several times counts as one."""
        found: dict[str, float] = {}
        for each in self.client.phases(job).phases:
            found[each.phase] = found.get(each.phase, 0.0) + each.seconds
        return found


def learn_stream(
    learner: Learner, stream: Stream, after_each: Callable[[int], float]
) -> Iterator[tuple[Live, float]]:
    """Learn the datasets of the stream one after another. `after_each` measures something else beside each."""
    for number, dataset in enumerate(stream.datasets):
        ask = stream.probe_rows(1, datasets=number + 1)[dataset.pair.first]
        live = learner.learn(
            dataset.name,
            dataset.pair,
            dataset.shards,
            (dataset.pair.first, ask),
            evaluation_shards=dataset.evaluation_shards,
        )
        log_progress(f"{learner.model}: {dataset.name} was live after {live.seconds:.1f} s")
        yield live, after_each(number)


class BareLearning:
    """The same datasets learned in this process, with all cores: no service, no Ray, no store, no certificate."""

    def __init__(self, spec: ModelSpec, datasets: Sequence[Dataset]) -> None:
        self._spec, self._datasets = spec, datasets
        self._state = initial_state(spec)
        self._past: tuple[PastDataset, ...] = ()

    def learn(self, number: int) -> float:
        """Learn the dataset of that number, the next one. Returns the seconds."""
        dataset = self._datasets[number]
        began = time.perf_counter()
        learned = learn_one(self._spec, self._state, dataset, self._past)
        seconds = time.perf_counter() - began
        self._state = learned.model_state
        self._past = (*self._past, remember(dataset, learned))
        return seconds


def stored_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; a file with several names counts once."""
    found: Mapping[int, int] = {
        stat.st_ino: stat.st_size
        for path in folder.rglob("*")
        if path.is_file()
        for stat in (path.stat(),)
    }
    return sum(found.values())
