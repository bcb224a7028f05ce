"""Clients of a stack under kills. Each is a thread that adds what it does and sees to the history.

A call that fails, after the client's own repetitions, is noted and not an error: the parts that answer are being killed.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from benchmarks.chaos.history import (
    Answer,
    Embedded,
    History,
    Hit,
    PointerSeen,
    Posted,
    Search,
    Write,
)
from cmcl.client import Client, CmclError, Item, Query
from cmcl.contract.dataset import ShardRef
from cmcl.contract.modality import ModalityPair

COLLECTION = "things"
# Items that each writer overwrites and removes.
_ITEMS = 200
_REMOVED_SHARE = 0.2
_JOB_SECONDS = 900.0

Rows = Mapping[str, Sequence[Sequence[float]]]


class Clients:
    """The threads, of which each calls its step until `stop`. Connect with `connect`, a client for each thread."""

    def __init__(self, history: History, connect: Callable[[], Client]) -> None:
        self.history = history
        self._connect = connect
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def start(self, step: Callable[[Client], None], seconds: float) -> None:
        """Call `step` again and again, with pauses."""

        def run() -> None:
            with self._connect() as client:
                while not self._stop.wait(seconds):
                    try:
                        step(client)
                    except CmclError as error:
                        reason = error.code or error.status or type(error).__name__
                        self.history.failures.append((time.time(), f"{step.__name__}: {reason}"))
                    except BaseException as error:  # noqa: BLE001 - raised by `stop`
                        self._errors.append(error)
                        return

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._threads.append(thread)

    def stop(self) -> None:
        """Let each end what it does. Raises the first error that is not of a call."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for error in self._errors:
            raise error

    @property
    def are_running(self) -> bool:
        """Whether none has met an error."""
        return not self._errors


class Poster:
    """Posts the datasets of a model, each when the one before has ended."""

    def __init__(
        self,
        history: History,
        model: str,
        datasets: Iterator[tuple[str, ModalityPair, ShardRef, ShardRef]],
    ) -> None:
        self._history, self._model, self._datasets = history, model, datasets
        self._next = next(datasets)
        self._job: str | None = None
        self._is_last = False
        self.has_ended = False

    def stop_after_this(self) -> None:
        """Post no other dataset than the one that is under way."""
        self._is_last = True

    def post(self, client: Client) -> None:
        """Post the next dataset or wait for its job. After a failed call it does the same again."""
        if self._is_last and self._job is None:
            self.has_ended = True
            return
        name, pair, shard, held_out = self._next
        if self._job is None:
            known = {each.name: each.job for each in client.datasets(self._model)}
            self._job = (
                known.get(name)
                or client.add_dataset(
                    self._model, name, pair, [shard], evaluation_shards=[held_out]
                ).job.id
            )
        ended = client.watch(self._job, timeout=_JOB_SECONDS)
        self._history.posted.append(
            Posted(self._model, name, self._job, ended.state, ended.message or "")
        )
        self._next, self._job = next(self._datasets), None


class Operator:
    """Reads the pointer of a model, and makes random versions live."""

    def __init__(self, history: History, model: str, seed: int) -> None:
        self._history, self._model = history, model
        self._random = random.Random(seed)  # noqa: S311

    def read(self, client: Client) -> None:
        """Read which version is live."""
        began = time.time()
        self._saw(began, client.live(self._model))

    def promote(self, client: Client) -> None:
        """Make one of the last versions live, or roll back."""
        newest = next(client.versions(self._model, order="desc")).version
        began = time.time()
        if newest > 1 and self._random.random() < 0.5:
            self._saw(began, client.roll_back(self._model, "chaos"))
        else:
            chosen = self._random.randint(max(1, newest - 3), newest)
            self._saw(began, client.promote(self._model, chosen, "chaos"))

    def _saw(self, began: float, live: Any) -> None:
        self._history.pointers.append(
            PointerSeen(self._model, began, time.time(), live.version, live.generation)
        )


class Asker:
    """Embeds rows, and asks for the version that it has seen before, now and then."""

    def __init__(self, history: History, model: str, rows: Rows, seed: int) -> None:
        self._history, self._model = history, model
        self._rows = [(name, row) for name, rows_ in rows.items() for row in range(len(rows_))]
        self._features = rows
        self._random = random.Random(seed)  # noqa: S311
        self._live = 0

    def embed(self, client: Client) -> None:
        """Embed a row of a random modality. Those that are not learned yet are refused."""
        modality, row = self._random.choice(self._rows)
        at_least = self._live if self._random.random() < 0.2 else 0
        began = time.time()
        found = client.embed(
            self._model, modality, [self._features[modality][row]], min_version=at_least
        )
        answer = Answer(self._model, began, time.time(), found.version, at_least)
        self._history.answers.append(answer)
        self._live = found.version
        key = Embedded(self._model, found.version, modality, row)
        self._history.add_vector(key, found.vectors[0])


class Writer:
    """Writes and removes items of its own of the collection, and searches for what it has written."""

    def __init__(self, history: History, model: str, modality: str, rows: Rows, seed: int) -> None:
        self._history, self._model, self._modality = history, model, modality
        self._features = rows[modality]
        self._random = random.Random(seed)  # noqa: S311
        self._prefix = f"w{seed}"
        self._numbers = count(1)

    def write(self, client: Client) -> None:
        """Write or remove an item, and search for it."""
        item = f"{self._prefix}-{self._random.randrange(_ITEMS)}"
        if self._random.random() < _REMOVED_SHARE:
            self._written(item, None, lambda: client.remove_items(COLLECTION, [item]))
            return
        number = next(self._numbers)
        row = self._random.randrange(len(self._features))
        stored = Item(
            item,
            self._modality,
            feature=self._features[row],
            payload={"number": number, "writer": self._prefix, "row": row},
        )
        write = self._written(item, number, lambda: client.add_items(COLLECTION, [stored]))
        began = time.time()
        found = client.search(
            COLLECTION,
            Query(self._modality, feature=self._features[0]),
            filter={
                "and": [
                    {"field": "number", "equals": number},
                    {"field": "writer", "equals": self._prefix},
                ]
            },
            min_revision=write.revision or 0,
        )
        answer = Answer(self._model, began, time.time(), found.version, 0)
        hits = tuple(
            Hit(each.id, int(each.payload["number"]), int(each.payload["row"]), each.score)
            for each in found.data
            if each.payload is not None
        )
        self._history.searches.append(Search(answer, self._modality, 0, write, hits))

    def _written(self, item: str, number: int | None, call: Callable[[], Any]) -> Write:
        try:
            revision = call().revision
        except CmclError:
            self._history.writes.append(Write(item, number, None))
            raise
        write = Write(item, number, revision)
        self._history.writes.append(write)
        return write


class Texts:
    """Embeds texts through an encoder, so that its processes have work when they are killed."""

    def __init__(self, model: str, modality: str) -> None:
        self._model, self._modality = model, modality

    def embed_text(self, client: Client) -> None:
        """Embed a text."""
        client.embed(self._model, self._modality, ["a red fruit"])
