"""Schedules of the endpoint: what the control plane publishes, what fails, and what clients see.

A schedule is a list of steps that its seed decides; the seed also decides how long each call takes and which thread comes
first. `violations` runs one and returns what it broke, and `shortest` leaves out steps while it still breaks the same.

    python -m tests.faults.endpoint_story --schedules 100000 [--seed 0]
"""

import argparse
import gc
import logging
import random
import sys
import time as system_time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from cmcl.contract.errors import StorageUnavailable
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import LivePointer
from cmcl.fairness import OverLimit
from cmcl.storage import layout
from cmcl.storage.versions import heads_bytes, remove_live, write_live
from tests.fakes.crashes import Contact, CrashingStore
from tests.fakes.memory_store import MemoryStore
from tests.fakes.versions import random_heads, store_version, stored_key
from tests.faults.virtual_endpoint import Answer, VirtualChannel, VirtualEndpoint
from tests.faults.virtual_time import VirtualTime
from workers.serve.settings import ServeSettings
from workers.serve.versions.live import LiveModel

# Wide enough that tensors and not headers are most of a file.
SPEC = ModelSpec(width=16, modalities={"image": 24, "text": 16}, lift=0)
MODELS = ("cars", "dogs")
# Every fourth schedule has two replicas, which share announcements.
_TWO = 4
VERSIONS = 5
FEATURES = np.random.default_rng(0).normal(size=(3, 24)).round(3).tolist()
# More than are computed on the event loop, so that the thread of the products is used.
_MANY = 40
POLL_SECONDS, QUEUE_SECONDS, WAIT_SECONDS = 4.0, 6.0, 1.0
LISTING = "models/"
# Until when steps are taken.
FAULTS_UNTIL = 12.0
_TAKES = (0.0, 0.001, 0.001, 0.01, 0.01, 0.2)
# Bounds, in seconds without a fault: for a deleted model, whose pointer is missed at three polls at least a pause apart;
# for a version that was refused, and is tried again after 15 s; for one that no fault concerned, and that was announced;
# for one in memory.
GONE_WITHIN, LIVE_WITHIN, CLEAN_WITHIN = 6 * POLL_SECONDS + 2.0, 26.0, POLL_SECONDS + 5.0
ANNOUNCED_WITHIN, SWAP_WITHIN = 3.0, POLL_SECONDS + 2.0
# Longer than a replica needs for what the last fault left.
_SETTLES_WITHIN = 60.0
_TICK_SECONDS = 0.5
# From the last look-up of a request's version to its end.
_ENDS_SECONDS = 1.0

_SETTINGS = ServeSettings(
    store="memory://",
    poll_seconds=POLL_SECONDS,
    queue_seconds=QUEUE_SECONDS,
    min_version_wait_seconds=WAIT_SECONDS,
    recent_versions=2,
)

# The invariants, as the tests are named.
NAMES_ONE = "an answer names one version and is of it"
NEVER_BACK = "a pointer never goes back except by rollback"
PINNED = "a pinned version stays"
RETIRED = "a retired version does not answer"
DELETED = "a deleted model stops within its bound"
NO_WAIT = "no request waits for ever"
MEMORY = "memory stays within its budget"
SETTLES = "the version of the pointer is live within its bound"
KEEPS_ANSWERING = "a replica that answers keeps answering"
READY = "a replica is ready once it has tried every model"
NO_BUG = "no thread meets an error that it does not expect"
INVARIANTS = (
    *(NAMES_ONE, NEVER_BACK, PINNED, RETIRED, DELETED, NO_WAIT, MEMORY, SETTLES),
    *(KEEPS_ANSWERING, READY, NO_BUG),
)


@dataclass(frozen=True)
class Step:
    """Something that happens at a second."""

    at: float
    kind: str
    model: str
    replica: int
    # Between 0 and 1: of what there is at that moment, or of a range, the one at this place.
    place: float
    seconds: float

    @property
    def scope(self) -> str:
        """Of a fault: the keys that it concerns begin with it; or the listing of models."""
        scopes = ("", "", f"models/{self.model}/", LISTING, "blobs/")
        return scopes[int(self.place * len(scopes))]

    def __str__(self) -> str:
        return (
            f"{self.at:6.2f} s  {self.kind:10} {self.model} replica {self.replica} "
            f"place {self.place:.2f} for {self.seconds:.1f} s"
        )


_KINDS = (
    *["ask"] * 14,
    *["publish"] * 5,
    *["roll back"] * 3,
    *["retire", "delete", "late write", "damage", "restart", "lose channel", "glitch"],
    *["fails", "fails", "slow", "slow", "hangs", "hangs", "unmounted"],
)


def schedule(seed: int) -> list[Step]:
    """Return the steps of that seed."""
    chance = random.Random(seed)
    steps = [Step(0.0, "publish", model, 0, 0.0, 0.0) for model in MODELS]
    for _ in range(chance.randint(5, 25)):
        at = round(chance.uniform(0.0, FAULTS_UNTIL), 2)
        kind, model = chance.choice(_KINDS), chance.choice(MODELS)
        seconds = round(chance.choice((0.1, 1.0, 4.0, 10.0)) * chance.random(), 1)
        steps.append(
            Step(at, kind, model, chance.randrange(2), chance.randrange(100) / 100, seconds)
        )
    return sorted(steps, key=lambda step: step.at)


@dataclass(frozen=True)
class _Template:
    """A store with all versions and no pointer, and what each version answers."""

    objects: dict[str, bytes]
    expected: dict[tuple[str, int], np.ndarray]
    budget: int


@cache
def _template() -> _Template:
    store = MemoryStore()
    expected, sizes = {}, []
    for place, model in enumerate(MODELS):
        for number in range(1, VERSIONS + 1):
            heads = random_heads(SPEC, seed=100 * place + number)
            manifest = store_version(store, model, number, SPEC, heads)
            sizes.append(heads_bytes(manifest))
            expected[model, number] = heads.embed("image", torch.tensor(FEATURES)).numpy()
    return _Template(store.objects, expected, max(sizes))


@dataclass
class _Model:
    """What the control plane has decided of one model. Times are the time's seconds."""

    pointers: list[tuple[float, LivePointer]] = field(default_factory=list)
    retired_at: dict[int, float] = field(default_factory=dict)
    deleted_at: float | None = None
    # When its pointer was written or removed for the last time.
    changed_at: float = 0.0
    had_glitch: bool = False

    @property
    def pointer(self) -> LivePointer:
        return self.pointers[-1][1]

    @property
    def wanted_pointer(self) -> LivePointer | None:
        return self.pointer if self.pointers and self.deleted_at is None else None

    @property
    def wanted(self) -> int | None:
        """The version that is to be live; None where there is none, or the model is deleted."""
        return self.pointer.version if self.pointers and self.deleted_at is None else None


@dataclass
class _Process:
    """One process of the endpoint: since when, what clients have asked it, and what it has shown.

    `calm_at`: by scope, until when faults concern it. `in_memory`: since when a version has been in memory.
    """

    endpoint: VirtualEndpoint
    mount: MemoryStore
    began: float
    calm_at: dict[str, float] = field(default_factory=dict)
    orders: dict[str, tuple[int, int]] = field(default_factory=dict)
    live: Mapping[str, LiveModel] | None = None
    pointers: Mapping[str, LivePointer] | None = None
    is_ready: bool = False
    in_memory: dict[tuple[str, int], float] = field(default_factory=dict)
    known_at: dict[str, float] = field(default_factory=dict)
    # Since when it has known that versions are retired.
    retired_at: dict[tuple[str, int], float] = field(default_factory=dict)
    # The change of each model that was announced to it last.
    announced: dict[str, float] = field(default_factory=dict)
    asked: list[tuple[Step, str, Answer]] = field(default_factory=list)

    def number(self, name: str) -> int | None:
        """The live version."""
        live = self.endpoint.live.get(name)
        return None if live is None else live.version.number

    def concern(self, scope: str, until: float) -> None:
        """Note a fault."""
        self.calm_at[scope] = max(self.calm_at.get(scope, 0.0), until)

    def calm(self, *scopes: str) -> float:
        """Until when faults of these scopes concern it, or of all keys; since it began, without."""
        return max(self.began, *(self.calm_at.get(scope, 0.0) for scope in ("", *scopes)))


class _Injector:
    """See FaultInjector: calls of one replica take time and fail."""

    def __init__(self, story: "Story", replica: int) -> None:
        self._story = story
        self._replica = replica

    def before(self, contact: Contact) -> None:
        story = self._story
        story.tally["calls"] += 1
        seconds = story.chance.choice(_TAKES)
        faults = [
            fault
            for fault in story.faults
            if fault.replica == self._replica
            and (
                contact.about == LISTING
                if fault.scope == LISTING
                else contact.about.startswith(fault.scope)
            )
        ]
        for fault in faults:
            if fault.kind == "slow":
                seconds += 2.0
            elif fault.kind == "hangs" and story.chance.random() < 0.5:
                seconds += 3 * fault.seconds
        for fault in faults:
            story.processes[self._replica].concern(fault.scope, story.time.seconds() + seconds)
        story.time.sleep(seconds)
        if any(fault.kind == "fails" and story.chance.random() < 0.6 for fault in faults):
            story.tally["failed calls"] += 1
            raise StorageUnavailable(f"{contact.about}: no answer (on purpose)")

    def inside(self, contact: Contact) -> None:
        """Nothing."""

    def after(self, contact: Contact) -> None:
        """Nothing: a replica writes nothing."""


class Story:
    """One schedule, run. `broken`: by invariant, what happened."""

    def __init__(self, seed: int, steps: Sequence[Step]) -> None:
        self.chance = random.Random(seed)
        template = _template()
        # Room for all versions; or for few, so that versions are evicted, and loaded on demand.
        self._is_ample = seed % 2 == 0
        self._count = 1 if seed % _TWO else 2
        budget = template.budget * (3 if not self._is_ample else 4 * VERSIONS * len(MODELS))
        self._budget, self._expected = budget, template.expected
        self.time = VirtualTime(self.chance)
        self.store = MemoryStore(dict(template.objects))
        self.faults: list[Step] = []
        self.tally = Counter[str]()
        self.broken: dict[str, str] = {}
        self._steps = [replace(step, replica=step.replica % self._count) for step in steps]
        self._models = {name: _Model() for name in MODELS}
        self._damaged: dict[str, list[tuple[float, float]]] = {}
        self._unmounted: list[tuple[float, float]] = []
        self._channel = VirtualChannel(self.time)
        self.processes: list[_Process] = []
        self._ended: list[_Process] = []

    def run(self) -> None:
        """Run it, until all is as the control plane wants it, and ask for each model once more."""
        self.processes = [self._process(replica) for replica in range(self._count)]
        for step in self._steps:
            self.time.after(step.at, partial(self._take, step))
        self.time.after(_TICK_SECONDS, self._tick)
        self.time.run(FAULTS_UNTIL, self._watch)
        ends = FAULTS_UNTIL + 3 * max((step.seconds for step in self._steps), default=0.0)
        self.time.run(ends, lambda: self._watch() or not self.faults)
        self.time.run(ends + _SETTLES_WITHIN, lambda: self._watch() or self._has_settled())
        if self.broken:
            return
        self._check(SETTLES, self._has_settled(), "it has not settled")
        for replica in range(self._count):
            for model in MODELS:
                self._ask(Step(self.time.seconds(), "ask again", model, replica, 0.1, 0.0))
        # Until all are answered, and calls that hang have ended.
        hangs = max(at for process in self.processes for at in (0.0, *process.calm_at.values()))
        self.time.run(max(self.time.seconds(), hangs) + QUEUE_SECONDS + 2.0, self._watch)
        if not self.broken:
            self._check_the_end()

    def _check_the_end(self) -> None:
        for process in [*self._ended, *self.processes]:
            self._check_answers(process)
            failures = process.endpoint.loop.failures
            self._check(NO_BUG, not failures, str(failures))
        for process in self.processes:
            self._check(NO_BUG, process.endpoint.follower.alive, "the follower has ended")
            self._check_memory(process)
            quotas = process.endpoint.admission
            for quota, all_of_it in (
                (quotas.rows, _SETTINGS.max_rows_in_flight),
                (quotas.bytes, _SETTINGS.max_bytes_in_flight),
                (quotas.requests, _SETTINGS.max_requests_in_flight),
            ):
                try:
                    quota.take("", all_of_it)
                except OverLimit as error:
                    self._check(MEMORY, False, str(error))

    def close(self) -> None:
        """End all threads."""
        for process in self.processes:
            process.endpoint.kill()
        self.time.close()
        for process in [*self._ended, *self.processes]:
            process.endpoint.loop.close()

    # What happens.

    def _process(self, replica: int) -> _Process:
        mount = MemoryStore(self.store.objects)
        store = CrashingStore(mount, _Injector(self, replica))
        endpoint = VirtualEndpoint(
            self.time, self.chance, store, self._channel, _SETTINGS, self._budget
        )
        return _Process(endpoint, mount, self.time.seconds())

    def _take(self, step: Step) -> None:
        self.tally[step.kind] += 1
        until = self.time.seconds() + step.seconds
        process = self.processes[step.replica]
        match step.kind:
            case "ask":
                self._ask(step)
            case "restart":
                process.endpoint.kill()
                self._ended.append(process)
                self.processes[step.replica] = self._process(step.replica)
                self.processes[step.replica].calm_at = process.calm_at
            case "lose channel":
                self._channel.lose()
                self.time.after(step.seconds, partial(setattr, self._channel, "is_lost", False))
            case "fails" | "slow" | "hangs":
                self.faults.append(step)
                process.concern(step.scope, until)
                self.time.after(step.seconds, partial(self.faults.remove, step))
            case "damage":
                self._damage(step)
            case "unmounted":
                # A disk that is away: what is below its mount point is empty.
                process.mount.objects = {}
                process.concern("", until)
                self._unmounted.append((self.time.seconds(), until))
                mount = partial(setattr, process.mount, "objects", self.store.objects)
                self.time.after(step.seconds, mount)
            case _:
                self._decide(step, self._models[step.model])

    def _concern(self, scope: str, until: float) -> None:
        for process in self.processes:
            process.concern(scope, until)

    def _decide(self, step: Step, model: _Model) -> None:
        """Change a model as the control plane does, and announce it."""
        now, name = self.time.seconds(), step.model
        if step.kind in ("late write", "glitch"):
            self._disturb(step, model)
        elif model.deleted_at is not None:
            return
        elif step.kind == "delete" and model.pointers:
            remove_live(self.store, name)
            model.deleted_at = model.changed_at = now
        elif (pointer := self._pointer(step, model)) is not None:
            write_live(self.store, name, pointer)
            model.pointers.append((now, pointer))
            model.changed_at = now
        if step.place < 0.7:
            self.processes[step.replica].endpoint.announce()
            self.processes[step.replica].announced[name] = now

    def _disturb(self, step: Step, model: _Model) -> None:
        """Write an earlier pointer, or none, and later what it was to be."""
        name, seconds = step.model, step.seconds
        if not model.pointers:
            return
        if step.kind == "late write":
            # Another replica of the control plane writes what it has read before, and then notices it.
            is_last = model.deleted_at is not None or len(model.pointers) == 1
            write_live(self.store, name, model.pointers[-1 if is_last else -2][1])
        elif model.deleted_at is None and not model.had_glitch:
            # Two polls at most miss it, which is no deletion. Once, as the next glitch could be at the third poll.
            remove_live(self.store, name)
            model.had_glitch, seconds = True, min(seconds, POLL_SECONDS)
        model.changed_at = max(model.changed_at, self.time.seconds() + seconds)
        self.time.after(seconds, partial(self._rewrite, name))

    def _pointer(self, step: Step, model: _Model) -> LivePointer | None:
        """Return the next pointer; None where there is nothing to change."""
        if step.kind == "publish":
            known = {pointer.version for _, pointer in model.pointers}
            number = max(known, default=0) + 1
            generation = len(model.pointers) + 1
            if number > VERSIONS:
                return None
            return LivePointer(
                generation=generation,
                version=number,
                revision=generation,
                retired=tuple(sorted(model.retired_at)),
            )
        if not model.pointers:
            return None
        before = model.pointer
        others = sorted(
            {pointer.version for _, pointer in model.pointers} - {before.version, *model.retired_at}
        )
        if not others:
            return None
        number = others[int(step.place * len(others))]
        change: dict[str, Any] = {"revision": before.revision + 1}
        if step.kind == "retire":
            model.retired_at[number] = self.time.seconds()
            change["retired"] = tuple(sorted(model.retired_at))
        else:
            change |= {"version": number, "generation": before.generation + 1}
        return before.model_copy(update=change)

    def _rewrite(self, name: str) -> None:
        model = self._models[name]
        if model.deleted_at is None:
            write_live(self.store, name, model.pointer)
        else:
            remove_live(self.store, name)

    def _damage(self, step: Step) -> None:
        """Damage an object of a version for some seconds."""
        number = 1 + int(step.place * VERSIONS)
        names = (layout.MANIFEST, layout.HEADS, layout.SELFTEST)
        whole = MemoryStore(_template().objects)
        key = stored_key(whole, step.model, number, names[int(step.at * 100) % len(names)])
        data = whole.read(key)
        place = int(step.at * 1000) % len(data)
        broken = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        self.store.put(key, broken)
        until = self.time.seconds() + step.seconds
        self._damaged.setdefault(step.model, []).append((self.time.seconds(), until))
        self._concern(f"damage {step.model}", until)
        self.time.after(step.seconds, partial(self.store.put, key, data))

    def _ask(self, step: Step) -> None:
        """Ask for the live version, one by its number, or a version at least."""
        model, headers = step.model, dict[str, str]()
        versions = [pointer.version for _, pointer in self._models[model].pointers] or [1]
        reference = model
        if 0.3 < step.place < 0.6:
            reference = f"{model}@{1 + int(step.seconds * 10) % VERSIONS}"
        elif step.place >= 0.6:
            wanted = max(versions) if step.place < 0.8 else 1 + int(step.seconds * 10) % VERSIONS
            headers["x-min-model-version"] = str(wanted)
        rows = _MANY if step.place * 100 % 10 < 2 else 1
        body = {
            "model": reference,
            "modality": "image",
            "input": [FEATURES[_feature(step, row)] for row in range(rows)],
        }
        if step.place * 100 % 10 >= 7:
            headers["x-request-timeout-ms"] = "500"
        leaves = step.seconds if step.place * 100 % 10 == 5 else None
        process = self.processes[step.replica]
        answer = process.endpoint.ask(body, headers, leaves_after=leaves)
        process.asked.append((step, reference, answer))

    # What must hold.

    def _check(self, invariant: str, holds: bool, what: str) -> None:
        if not holds:
            self.broken.setdefault(invariant, f"{self.time.seconds():.2f} s: {what}")

    def _watch(self) -> bool:
        """Check what must hold at any moment. Returns whether the story is over, which it is when something broke."""
        for process in self.processes:
            held = process.endpoint.cache.bytes
            if held > self._budget:
                self._check(MEMORY, False, f"{held} bytes of heads, {self._budget} are permitted")
            pointers = process.endpoint.live.pointers()
            if pointers is not process.pointers:
                process.pointers = pointers
                for name, pointer in pointers.items():
                    for number in set(pointer.retired) - {pointer.version}:
                        process.retired_at.setdefault((name, number), self.time.seconds())
            live = process.endpoint.live.all()
            if live is not process.live:
                process.live = live
                self._check_live(process)
            if not process.is_ready and process.endpoint.live.readiness.ready:
                process.is_ready = True
                self._check_tried(process)
        return bool(self.broken)

    def _check_live(self, process: _Process) -> None:
        for name, model in self._models.items():
            live, before = process.endpoint.live.get(name), process.orders.get(name)
            if live is None:
                is_lost = before is not None and model.deleted_at is None
                self._check(KEEPS_ANSWERING, not is_lost, f"{name} is no longer live")
                continue
            is_back = before is not None and live.order < before
            self._check(NEVER_BACK, not is_back, f"{name} is at {live.order} after {before}")
            process.orders[name] = live.order

    def _check_tried(self, process: _Process) -> None:
        for name, model in self._models.items():
            is_old = model.pointers and model.pointers[0][0] < process.began
            is_there = model.deleted_at is None and model.changed_at < process.began
            if is_old and is_there and not self._unmounted:
                refusal = process.endpoint.live.refusal(name)
                is_refused = refusal is not None and refusal.kind != "unavailable"
                is_tried = name in process.endpoint.live.all() or is_refused
                self._check(READY, is_tried, f"{name} was not tried: {refusal}")

    def _tick(self) -> None:
        """Check what must hold after some time."""
        self.time.after(_TICK_SECONDS, self._tick)
        for process in self.processes:
            for name, model in self._models.items():
                if process.number(name) != model.wanted:
                    self._check_time(process, name, model)

    def _check_time(self, process: _Process, name: str, model: _Model) -> None:
        """Check that it is not too late for the wanted version to be live."""
        now, live, wanted = self.time.seconds(), process.endpoint.live, model.wanted
        pointers = max(process.calm(f"models/{name}/"), model.changed_at)
        # A model that is not known yet is found in a listing.
        if live.pointer(name) is not None:
            listed = process.known_at.setdefault(name, now)
        else:
            listed = process.calm(LISTING)
        pointers = max(pointers, listed)
        loads = max(process.calm("blobs/", f"damage {name}"), pointers)
        refusal = live.refusal(name)
        about = f"{name} is at {process.number(name)}, and not at {wanted}: {refusal}"
        if wanted is None:
            self._check(DELETED, now <= pointers + GONE_WITHIN, about)
            return
        self._check(SETTLES, now <= loads + LIVE_WITHIN, about)
        if refusal is not None:
            return
        if self._is_ample and loads == pointers:
            self._check(SETTLES, now <= pointers + CLEAN_WITHIN, about)
            was_announced = process.announced.get(name) == model.changed_at
            if was_announced and listed < model.changed_at == pointers:
                self._check(SETTLES, now <= pointers + ANNOUNCED_WITHIN, about)
        if process.endpoint.cache.get(name, wanted) is not None:
            since = process.in_memory.setdefault((name, wanted), now)
            swapped_by = max(since, pointers) + SWAP_WITHIN
            self._check(SETTLES, now <= swapped_by, f"{about}, though it is in memory")
        else:
            process.in_memory.pop((name, wanted), None)

    def _has_settled(self) -> bool:
        return all(
            process.endpoint.live.readiness.ready
            and process.number(name) == model.wanted
            and process.endpoint.live.pointer(name) == model.wanted_pointer
            for process in self.processes
            for name, model in self._models.items()
        )

    def _check_memory(self, process: _Process) -> None:
        """Check that nothing is left of what has ended."""
        cache = process.endpoint.cache
        left = f"{cache._reservations} {cache._loading}"
        self._check(MEMORY, not cache._reservations and not cache._loading, f"loads: {left}")
        for name, versions in cache.by_model().items():
            model = self._models[name]
            kept = {version.number for version in versions} & model.retired_at.keys()
            is_deleted = model.deleted_at is not None and process.number(name) is None
            self._check(MEMORY, not kept, f"of {name} retired versions are in memory: {kept}")
            self._check(MEMORY, not is_deleted, f"{name} is deleted and in memory")

    def _check_answers(self, process: _Process) -> None:
        newest: list[tuple[Answer, str, int]] = []
        was_killed = process not in self.processes
        for step, reference, answer in process.asked:
            if answer.ended == np.inf:
                # What a replica that was killed had not answered is lost; it had some seconds for it.
                self._check(NO_WAIT, was_killed, f"{reference} of {step} has no answer")
                continue
            if answer.status is not None:
                self._check_answer(process, step, reference, answer)
            if answer.status == 200 and "@" not in reference:
                self._check_order(reference, answer, newest)

    def _check_answer(self, process: _Process, step: Step, reference: str, answer: Answer) -> None:
        name, _, number = reference.partition("@")
        model, status = self._models[name], answer.status
        about = f"{reference}, asked at {answer.began:.2f} s, {status} at {answer.ended:.2f} s: "
        if status != 200:
            about += str(answer.body)
        self.tally[f"status {status}"] += 1
        is_gone = step.kind == "ask again" and model.deleted_at is not None
        # One that has never known it takes it for a model whose first version comes.
        is_gone &= name in process.orders
        self._check(DELETED, not is_gone or status == 404, about)
        waited = answer.ended - answer.began
        self._check(NO_WAIT, waited <= QUEUE_SECONDS + 1.0, about)
        if status == 200:
            label, given = answer.body["model"], int(answer.headers[b"x-model-version"])
            self._check(NAMES_ONE, label == f"{name}@{given}", about)
            rows = np.array([row["embedding"] for row in answer.body["data"]])
            expected = self._expected[name, given]
            asked = [_feature(step, row) for row in range(len(rows))]
            error = np.abs(rows - expected[asked]).max()
            self._check(NAMES_ONE, error < 1e-5, f"an error of {error:.3f}: {about}")
            self._check(PINNED, not number or given == int(number), about)
            seen = process.retired_at.get((name, given), np.inf)
            is_late = bool(number) and answer.ended > seen + _ENDS_SECONDS
            self._check(RETIRED, not is_late, f"it is retired since {seen}: {about}")
            return
        is_deleted = model.deleted_at is not None and model.deleted_at <= answer.ended
        is_early = not model.pointers or answer.began < model.pointers[0][0] + GONE_WITHIN
        is_damaged = _overlaps(answer, self._damaged.get(name, ()))
        is_away = is_deleted or is_early or _overlaps(answer, self._unmounted)
        # A file that is missing although its manifest is there is damage.
        is_damaged |= _overlaps(answer, self._unmounted)
        permitted = {503, 429, 404 if is_away else 0, 500 if is_damaged else 0}
        if number:
            retired_at = model.retired_at.get(int(number), np.inf)
            published = [at for at, each in model.pointers if each.version == int(number)]
            if retired_at <= answer.ended or not published:
                permitted.add(404)
        if status == 504:
            self._check(NO_WAIT, waited >= 0.499, about)
        else:
            self._check(PINNED if number else KEEPS_ANSWERING, status in permitted, about)
        if step.kind == "ask again" and not is_deleted and model.pointers:
            self._check(KEEPS_ANSWERING, not self._is_ample, about)

    def _check_order(
        self, name: str, answer: Answer, newest: list[tuple[Answer, str, int]]
    ) -> None:
        """Check that this answer is of no earlier pointer than those that had ended before it was asked."""
        given = int(answer.headers[b"x-model-version"])
        least = max(
            (place for before, of, place in newest if of == name and before.ended <= answer.began),
            default=0,
        )
        pointers = self._models[name].pointers
        places = [
            place
            for place, (at, pointer) in enumerate(pointers)
            if place >= least and pointer.version == given and at <= answer.ended
        ]
        self._check(NEVER_BACK, bool(places), f"{name}@{given} after pointer {least}: {answer}")
        if places:
            newest.append((answer, name, places[0]))


def _feature(step: Step, row: int) -> int:
    """Which of FEATURES a request has in that row."""
    return (int(step.at * 100) + row) % len(FEATURES)


def _overlaps(answer: Answer, times: Sequence[tuple[float, float]]) -> bool:
    return any(begun <= answer.ended and answer.began <= until + 1.0 for begun, until in times)


class _Errors(logging.Handler):
    """Collects what the product logs as an error that it did not expect."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.getMessage()} {record.exc_info and record.exc_info[1]!r}")


@contextmanager
def collected_errors() -> Iterator[list[str]]:
    """Collect what the product logs as an error, and keep all else of it from the log."""
    errors, logger = _Errors(), logging.getLogger("workers")
    before = logger.level, logger.propagate, logger.handlers
    logger.setLevel(logging.ERROR)
    logger.propagate, logger.handlers = False, [errors]
    try:
        yield errors.messages
    finally:
        logger.setLevel(before[0])
        logger.propagate, logger.handlers = before[1:]


def violations(
    seed: int, steps: Sequence[Step], tally: Counter[str] | None = None
) -> dict[str, str]:
    """Run a schedule and return what it broke, by invariant."""
    story = Story(seed, steps)
    with collected_errors() as errors:
        try:
            story.run()
        finally:
            story.close()
    if errors:
        story.broken.setdefault(NO_BUG, errors[0])
    if tally is not None:
        tally.update(story.tally)
    return story.broken


def shortest(seed: int, invariant: str) -> list[Step]:
    """Return a shortest schedule that breaks the invariant: without any of its steps it does not."""
    steps = schedule(seed)
    size = len(steps) // 2
    while size:
        for start in reversed(range(0, len(steps), size)):
            fewer = steps[:start] + steps[start + size :]
            if invariant in violations(seed, fewer):
                steps = fewer
        size //= 2
    return steps


def broken_schedules(seeds: Sequence[int], tally: Counter[str]) -> Iterator[tuple[int, str, str]]:
    """Run these schedules; yield seed, invariant and what happened, of each that broke one."""
    for seed in seeds:
        for invariant, what in violations(seed, schedule(seed), tally).items():
            yield seed, invariant, what


def described(seed: int, invariant: str, what: str) -> str:
    """Return a violation with its shortest schedule, as a message."""
    steps = "\n".join(f"    {step}" for step in shortest(seed, invariant))
    return f"seed {seed}: {invariant}\n    {what}\n{steps}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run schedules and print those that broke an invariant. Returns 1 if any did."""
    parser = argparse.ArgumentParser(description="Schedules of the endpoint in virtual time.")
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule")
    options = parser.parse_args(arguments)
    began, tally, broken = system_time.monotonic(), Counter[str](), 0
    # Nothing that was imported is looked at again, which takes longer than a schedule.
    gc.collect()
    gc.freeze()
    seeds = range(options.seed, options.seed + options.schedules)
    for seed, invariant, what in broken_schedules(seeds, tally):
        broken += 1
        print(described(seed, invariant, what), flush=True)
    seconds = system_time.monotonic() - began
    print(f"{len(seeds)} schedules in {seconds:.0f} s, {broken} broke an invariant; {dict(tally)}")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
