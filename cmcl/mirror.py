"""Versions in MLflow: a run for each model, a step for each version.

A follower outside the control plane reads it through the client. An event only says that a model has changed. Which
versions are missing follows from the last version that MLflow has, so nothing is lost while the mirror is stopped,
however long, and nothing is written twice.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Protocol, TypeVar

from cmcl.client import Client, CmclError, Model, Version
from cmcl.client.concurrency import Clock
from cmcl.client.errors import is_transient
from cmcl.contract.api.events import EventKind
from cmcl.pictures import arranged, version_pictures

T = TypeVar("T")

_KINDS = (
    EventKind.VERSION_PUBLISHED,
    EventKind.VERSION_PROMOTED,
    EventKind.VERSION_ROLLED_BACK,
    EventKind.MODEL_BRANCHED,
)
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_NOT_FOUND = 404

_MODEL, _LAST, _LIVE, _SERVICE = "cmcl.model", "cmcl.version", "cmcl.live_version", "cmcl.service"
# Metrics in one request.
_MOST_METRICS = 900
_TRANSIENT = frozenset({408, 429})


class MirrorError(Exception):
    """The mirror cannot go on. The message is for the user."""


class TargetUnavailable(Exception):
    """The target does not respond now, and may respond later."""


@dataclass(frozen=True)
class Published:
    """A version to write."""

    model: Model
    version: Version

    @property
    def name(self) -> str:
        """`model@version`."""
        return f"{self.model.name}@{self.version.version}"

    def metrics(self) -> dict[str, float]:
        """Recall, drift, loss and free shares, by name. Datasets have their names."""
        report = self.version.report
        names = unique_names((line.dataset, line.name) for line in self.version.lineage)
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
        recalls = [recall.at_1 for recall in report.evaluation.values()]
        if recalls:
            found["mean_recall_at_1"] = sum(recalls) / len(recalls)
        if report.drift:
            found["max_drift"] = max(drift.since_learned for drift in report.drift.values())
        return found

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
        drawn = version_pictures(self.version)
        return arranged(self.name, {each.title: each for each in drawn if each is not None})


def unique_names(datasets: Iterable[tuple[str, str]]) -> dict[str, str]:
    """By id: names, with the id where a dataset before it has the same name. A later dataset renames none before it."""
    found: dict[str, str] = {}
    names: set[str] = set()
    for dataset, name in datasets:
        found[dataset] = f"{name}-{dataset}" if name in names else name
        names.add(name)
    return found


class Target(Protocol):
    """Where versions are written. Raises TargetUnavailable, or MirrorError if retrying cannot help."""

    def last_version(self, model: str) -> int:
        """Return the last complete version at the target; 0 if it has none."""
        ...

    def write_version(self, published: Published) -> None:
        """Write a version. Writing the same one again must not add anything."""
        ...

    def write_live(self, model: str, version: int) -> None:
        """Note which version is live."""
        ...


class Mirror:
    """Writes the models of a control plane to a target. `model`: that one alone."""

    def __init__(self, client: Client, target: Target, model: str | None, clock: Clock) -> None:
        self._client = client
        self._target = target
        self._model = model
        self._clock = clock

    def catch_up(self) -> None:
        """Write everything that the target lacks."""
        for model in self._reliably(self._models):
            self._catch_up(model.name)

    def follow(self) -> None:
        """Catch up, then follow events without an end."""
        newest = self._reliably(self._newest_event)
        self.catch_up()
        kinds = [str(kind) for kind in _KINDS]
        forever = float("inf")
        for event in self._client.follow_events(self._model, kinds, newest, forever):
            if event.model is not None:
                self._catch_up(event.model)

    def _catch_up(self, name: str) -> None:
        """Write the versions of a model that the target lacks, oldest first, and which one is live."""
        model = self._reliably(partial(self._found, lambda: self._client.model(name)))
        if model is None:
            return
        last = self._reliably(partial(self._target.last_version, name))
        for number in range(last + 1, (model.head_version or 0) + 1):
            read = partial(self._client.version, name, number)
            version = self._reliably(partial(self._found, read))
            if version is not None:
                published = Published(model, version)
                self._reliably(partial(self._target.write_version, published))
                _say(f"{published.name} is written")
        if model.live_version is not None:
            self._reliably(partial(self._target.write_live, name, model.live_version))

    def _models(self) -> list[Model]:
        if self._model is not None:
            return [self._client.model(self._model)]
        return list(self._client.models())

    def _found(self, read: Callable[[], T]) -> T | None:
        """None for what was removed in the meantime."""
        try:
            return read()
        except CmclError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    def _newest_event(self) -> int:
        newest = next(iter(self._client.all_events(self._model, order="desc")), None)
        return newest.id or 0 if newest is not None else 0

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


class MlflowTarget:
    """A tracking server. `uri`: default MLFLOW_TRACKING_URI.

    Metrics have the time of the version, so that MLflow recognizes a point that it has. The tag with the last version
    is sent with the last metrics, after the pictures: a version that the tag names is complete.
    """

    def __init__(self, uri: str | None, experiment: str, service: str) -> None:
        # The loop repeats requests and says so; MLflow's own retries last minutes in silence.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        try:
            self._mlflow: Any = import_module("mlflow")
            self._entities: Any = import_module("mlflow.entities")
        except ModuleNotFoundError as error:
            raise MirrorError(
                "this command needs the package mlflow-skinny, which is not installed: pip install mlflow-skinny"
            ) from error
        self._client = self._mlflow.MlflowClient(uri)
        self._experiment_name = experiment
        self._service = service
        self._runs: dict[str, Any] = {}

    def last_version(self, model: str) -> int:
        """See Target."""
        run = self._call(lambda: self._find_run(model))
        return 0 if run is None else int(run.data.tags.get(_LAST, 0))

    def write_version(self, published: Published) -> None:
        """See Target."""
        self._call(lambda: self._write(published))

    def write_live(self, model: str, version: int) -> None:
        """See Target."""
        run = self._runs.get(model)
        if run is not None and run.data.tags.get(_LIVE) != str(version):
            self._call(lambda: self._client.set_tag(run.info.run_id, _LIVE, version))
            run.data.tags[_LIVE] = str(version)

    def _write(self, published: Published) -> None:
        version = published.version
        run = self._run(published)
        folder = f"versions/{version.version}"
        lineage = [line.model_dump(mode="json") for line in version.lineage]
        for name, text in (
            ("pictures.svg", published.picture()),
            ("manifest.json", version.manifest.model_dump_json(indent=2)),
            ("lineage.json", json.dumps(lineage)),
        ):
            self._client.log_text(run.info.run_id, text, f"{folder}/{name}")
        at = int(version.created_at.timestamp() * 1000)
        metrics = [
            self._entities.Metric(name, value, at, version.version)
            for name, value in published.metrics().items()
        ]
        rest = metrics[_MOST_METRICS:]
        for start in range(0, len(rest), _MOST_METRICS):
            self._client.log_batch(run.info.run_id, rest[start : start + _MOST_METRICS])
        tag = self._entities.RunTag(_LAST, str(version.version))
        params = [self._entities.Param(*each) for each in published.settings().items()]
        self._client.log_batch(run.info.run_id, metrics[:_MOST_METRICS], params, [tag])

    def _run(self, published: Published) -> Any:
        model = published.model.name
        run = self._find_run(model)
        if run is None:
            experiment = self._client.get_experiment_by_name(self._experiment_name)
            identifier = (
                self._client.create_experiment(self._experiment_name)
                if experiment is None
                else experiment.experiment_id
            )
            tags = {_MODEL: model, _SERVICE: self._service}
            run = self._client.create_run(identifier, tags=tags, run_name=model)
            self._runs[model] = run
        return run

    def _find_run(self, model: str) -> Any:
        """Return the run of a model, None before its first version."""
        experiment = self._client.get_experiment_by_name(self._experiment_name)
        if experiment is None:
            return None
        wanted = f"tags.`{_MODEL}` = '{model}' and tags.`{_SERVICE}` = '{self._service}'"
        found = self._client.search_runs([experiment.experiment_id], wanted)
        if found:
            self._runs[model] = found[0]
        return found[0] if found else None

    def _call(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except self._mlflow.MlflowException as error:
            status = error.get_http_status_code()
            if status >= 500 or status in _TRANSIENT:
                raise TargetUnavailable(f"MLflow: {error}") from error
            raise MirrorError(f"MLflow: {error}") from error


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
