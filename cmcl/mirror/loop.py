"""The loop that all targets share: what is new at the control plane is written to the target, once.

An event only says that a model has changed. Which versions are missing follows from the last version that the
target has, so nothing is lost while the mirror is stopped, however long, and nothing is written twice.
Failed jobs leave no version; their events are followed from the last one, which the state file has.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from cmcl.client import Client, CmclError, Event, Job, Model, Version
from cmcl.client.concurrency import Clock
from cmcl.client.errors import is_transient
from cmcl.contract.event import EventKind
from cmcl.pictures import stacked, version_pictures

T = TypeVar("T")

FAILURES = (EventKind.JOB_FAILED, EventKind.JOB_REJECTED, EventKind.JOB_CANCELLED)
_KINDS = (
    EventKind.VERSION_PUBLISHED,
    EventKind.VERSION_PROMOTED,
    EventKind.VERSION_ROLLED_BACK,
    EventKind.MODEL_BRANCHED,
    *FAILURES,
)
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_NOT_FOUND = 404


class MirrorError(Exception):
    """The mirror cannot go on. The message is for the user."""


class TargetUnavailable(Exception):
    """The target does not respond now, and may respond later."""


@dataclass(frozen=True)
class Published:
    """A version to write. `job` is None if its job is no longer known, or belongs to another model."""

    service: str
    model: Model
    version: Version
    job: Job | None

    @property
    def name(self) -> str:
        """`model@version`."""
        return f"{self.model.name}@{self.version.version}"

    def metrics(self) -> dict[str, float]:
        """Recall, drift, loss and free shares, by name. Datasets have their names."""
        report = self.version.report
        names = self.dataset_names()
        found: dict[str, float] = {"final_loss": report.final_loss}
        for dataset, recall in report.evaluation.items():
            found[f"recall_at_1/{names[dataset]}"] = recall.at_1
            found[f"recall_at_10/{names[dataset]}"] = recall.at_10
        for dataset, drift in report.drift.items():
            found[f"drift/{names[dataset]}"] = drift.since_learned
            found[f"drift_against_parent/{names[dataset]}"] = drift.against_parent
        for dataset, quality in report.quality.items():
            found[f"quality/{names[dataset]}"] = quality.now
        only = unique_names((each.dataset, each.name) for each in report.evaluation_only)
        for measured in report.evaluation_only:
            if measured.recall is not None:
                found[f"evaluation_only/{only[measured.dataset]}"] = measured.recall.at_1
        shares = report.capacity.items()
        found |= {f"free_share/{name}": capacity.free_share for name, capacity in shares}
        return found | self._summary()

    def _summary(self) -> dict[str, float]:
        recalls = [recall.at_1 for recall in self.version.report.evaluation.values()]
        drifts = [drift.since_learned for drift in self.version.report.drift.values()]
        return {
            **({"mean_recall_at_1": sum(recalls) / len(recalls)} if recalls else {}),
            **({"max_drift": max(drifts)} if drifts else {}),
        }

    def dataset_names(self) -> dict[str, str]:
        """By id: the name of each dataset that the version has learned, with the id where an earlier one has the name."""
        return unique_names((line.dataset, line.name) for line in self.version.lineage)

    def settings(self) -> dict[str, str]:
        """What stays the same for all versions of the model."""
        model = self.model
        return {
            "policy": str(model.policy or model.method),
            "width": str(model.width),
            "seed": str(model.seed),
        }

    def picture(self) -> str:
        """All pictures of the version as one SVG."""
        drawn = version_pictures(self.version, self.version.manifest.spec.drift_bound)
        return stacked(self.name, [each for each in drawn if each is not None])


def unique_names(datasets: Iterable[tuple[str, str]]) -> dict[str, str]:
    """By id: names, with the id where a dataset before it has the same name. A later dataset renames none before it."""
    found: dict[str, str] = {}
    names: set[str] = set()
    for dataset, name in datasets:
        found[dataset] = f"{name}-{dataset}" if name in names else name
        names.add(name)
    return found


class Target:
    """Where versions are written. A target overrides what it has a place for. Methods raise TargetUnavailable, or MirrorError if retrying cannot help."""

    def last_version(self, model: str) -> int | None:
        """Return the last complete version at the target; None if the target cannot tell."""
        return None

    def write_version(self, published: Published) -> None:
        """Write a version. Writing the same one again must not add anything."""
        raise NotImplementedError

    def write_live(self, model: str, version: int) -> None:
        """Note which version is live."""

    def write_failure(self, event: Event) -> None:
        """Note a job that ended without a version."""

    def close(self) -> None:
        """Write what is buffered."""


@dataclass
class State:
    """Last event that was followed and last version of each model, in a file."""

    path: Path
    service: str
    after: int | None = None
    versions: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, service: str) -> "State":
        """Read the file, if there is one. Raises MirrorError if it is of another control plane."""
        if not path.exists():
            return cls(path, service)
        try:
            known = json.loads(path.read_text())
            state = cls(path, known["service"], known["after"], dict(known["versions"]))
        except (ValueError, KeyError, TypeError) as error:
            raise MirrorError(f"{path} is not a state file of cmcl mirror: {error!r}") from error
        if state.service != service:
            raise MirrorError(
                f"{path} belongs to {state.service}, not to {service}: name another file with --state"
            )
        return state

    def save(self) -> None:
        """Replace the file in one step."""
        written = {"service": self.service, "after": self.after, "versions": self.versions}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial_file = self.path.with_name(f"{self.path.name}.partial")
        partial_file.write_text(json.dumps(written) + "\n")
        partial_file.replace(self.path)


class Mirror:
    """Writes the models of a control plane to a target. `model`: that one alone."""

    def __init__(
        self, client: Client, target: Target, state: State, model: str | None, clock: Clock
    ) -> None:
        self._client = client
        self._target = target
        self._state = state
        self._model = model
        self._clock = clock

    def catch_up(self) -> None:
        """Write everything that the target lacks."""
        newest = self._reliably(self._newest_event)
        for model in self._reliably(self._models):
            self._catch_up(model.name)
        for event in self._reliably(partial(self._failures_until, newest)):
            self._reliably(partial(self._target.write_failure, event))
        self._state.after = newest
        self._state.save()

    def follow(self) -> None:
        """Catch up, then follow events without an end."""
        self.catch_up()
        kinds = [str(kind) for kind in _KINDS]
        forever = float("inf")
        for event in self._client.follow_events(self._model, kinds, self._state.after, forever):
            if event.id is None:
                continue
            if event.kind in FAILURES:
                self._reliably(partial(self._target.write_failure, event))
            elif event.model is not None:
                self._catch_up(event.model)
            self._state.after = event.id
            self._state.save()

    def _catch_up(self, name: str) -> None:
        """Write the versions of a model that the target lacks, oldest first, and which one is live."""
        model = self._reliably(partial(self._found, lambda: self._client.model(name)))
        if model is None:
            return
        last = self._reliably(partial(self._target.last_version, name))
        if last is None:
            last = self._state.versions.get(name, 0)
        for number in range(last + 1, (model.head_version or 0) + 1):
            published = self._reliably(partial(self._published, model, number))
            if published is not None:
                self._reliably(partial(self._target.write_version, published))
                _say(f"{published.name} is written")
            self._state.versions[name] = number
            self._state.save()
        if model.live_version is not None:
            self._reliably(partial(self._target.write_live, name, model.live_version))

    def _models(self) -> list[Model]:
        if self._model is not None:
            return [self._client.model(self._model)]
        return list(self._client.models())

    def _published(self, model: Model, number: int) -> Published | None:
        """Read a version. None if it was removed in the meantime."""
        version = self._found(lambda: self._client.version(model.name, number))
        if version is None:
            return None
        known = version.job
        job = None if known is None else self._found(lambda: self._client.job(known))
        return Published(self._state.service, model, version, job)

    def _found(self, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except CmclError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    def _newest_event(self) -> int:
        newest = next(iter(self._client.all_events(self._model, order="desc")), None)
        return newest.id or 0 if newest is not None else 0

    def _failures_until(self, newest: int) -> list[Event]:
        """Failed jobs since the last event that was followed. None are known at the first start."""
        after = self._state.after
        return [] if after is None else list(self._failures_between(after, newest))[::-1]

    def _failures_between(self, after: int, newest: int) -> Iterator[Event]:
        kinds = [str(kind) for kind in FAILURES]
        for event in self._client.all_events(self._model, kinds, order="desc"):
            if event.id is None or event.id <= after:
                return
            if event.id <= newest:
                yield event

    def _reliably(self, act: Callable[[], T]) -> T:
        """Repeat what cannot be done now, with pauses that double to a minute, until it is done."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return act()
            except (TargetUnavailable, CmclError) as error:
                if isinstance(error, CmclError) and not is_transient(error):
                    raise
                _say(f"{error}; trying again in {pause:g} s")
            self._clock.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)


def optional_module(name: str, package: str) -> Any:
    """Import a module of an optional package. Raises MirrorError that names the package."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MirrorError(
            f"this command needs the package {package}, which is not installed: pip install {package}"
        ) from error


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
