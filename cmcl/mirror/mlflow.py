"""MLflow: a run for each model, a step for each version.

Metrics have the time of the version, so that MLflow recognizes a point that it has. The tag with the last version
is sent with the last metrics, after the pictures: a version that the tag names is complete.
"""

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

from cmcl.mirror.loop import MirrorError, Published, Target, TargetUnavailable, optional_module

T = TypeVar("T")

_MODEL, _LAST, _LIVE, _SERVICE = "cmcl.model", "cmcl.version", "cmcl.live_version", "cmcl.service"
# Of one request.
_MOST_METRICS = 900
_TRANSIENT = frozenset({408, 429})


class MlflowTarget(Target):
    """A tracking server. `uri`: default MLFLOW_TRACKING_URI."""

    def __init__(self, uri: str | None, experiment: str, service: str) -> None:
        # This loop repeats requests and says so; MLflow's own retries last minutes in silence.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        self._mlflow = optional_module("mlflow", "mlflow-skinny")
        self._entities = optional_module("mlflow.entities", "mlflow-skinny")
        self._client = self._mlflow.MlflowClient(uri)
        self._experiment_name = experiment
        self._service = service
        self._runs: dict[str, Any] = {}

    def last_version(self, model: str) -> int | None:
        run = self._call(lambda: self._find_run(model))
        return 0 if run is None else int(run.data.tags.get(_LAST, 0))

    def write_version(self, published: Published) -> None:
        self._call(lambda: self._write(published))

    def write_live(self, model: str, version: int) -> None:
        run = self._runs.get(model)
        if run is not None and run.data.tags.get(_LIVE) != str(version):
            self._call(lambda: self._client.set_tag(run.info.run_id, _LIVE, version))
            run.data.tags[_LIVE] = str(version)

    def _write(self, published: Published) -> None:
        version = published.version
        run = self._run(published)
        folder = f"versions/{version.version}"
        for name, text in (
            ("pictures.svg", published.picture()),
            ("manifest.json", version.manifest.model_dump_json(indent=2)),
            (
                "lineage.json",
                json.dumps([line.model_dump(mode="json") for line in version.lineage]),
            ),
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
