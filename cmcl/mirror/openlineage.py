"""OpenLineage: a job for each model, a run for each dataset: it reads the dataset and the parent version, and
writes a version.

Ids and times of runs follow from those of jobs, so an event that is sent again is the same event.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from cmcl.client import Event
from cmcl.mirror.loop import (
    FAILURES,
    MirrorError,
    Published,
    Target,
    TargetUnavailable,
    optional_module,
)

_PACKAGE = "openlineage-python"
_PRODUCER = "urn:cmcl:mirror"
_TRANSIENT = frozenset({408, 429})


class OpenlineageTarget(Target):
    """A server that takes OpenLineage events, such as Marquez, DataHub or OpenMetadata."""

    def __init__(self, url: str, namespace: str, key: str | None, service: str) -> None:
        http: Any = optional_module("openlineage.client.transport.http", _PACKAGE)
        self._client = optional_module("openlineage.client", _PACKAGE)
        self._events = optional_module("openlineage.client.event_v2", _PACKAGE)
        self._facets = optional_module("openlineage.client.facet_v2", _PACKAGE)
        self._requests = optional_module("requests", _PACKAGE)
        token = {"type": "api_key", "apiKey": key} if key else {}
        # This loop repeats requests.
        config = http.HttpConfig.from_dict({"url": url, "auth": token, "retry": {"total": 0}})
        self._transport = http.HttpTransport(config)
        self._namespace = namespace
        self._service = service

    def write_version(self, published: Published) -> None:
        version, job = published.version, published.job
        started = job.started_at or job.created_at if job is not None else version.created_at
        inputs = self._inputs(published)
        run = self._run(version.job or published.name)
        self._emit("START", started, run, version.model, inputs)
        facets = {
            "version": self._facets.dataset_version_dataset.DatasetVersionDatasetFacet(
                datasetVersion=str(version.version)
            )
        }
        output = self._events.OutputDataset(
            self._namespace, f"models/{version.model}/versions/{version.version}", facets=facets
        )
        self._emit("COMPLETE", version.created_at, run, version.model, inputs, [output])

    def write_failure(self, event: Event) -> None:
        if event.job is None or event.model is None or event.created_at is None:
            return
        kind = "FAIL" if event.kind == FAILURES[0] else "ABORT"
        message = str(event.details.get("message") or event.details.get("reason") or event.kind)
        facet = self._facets.error_message_run.ErrorMessageRunFacet(
            message=message, programmingLanguage="Python"
        )
        run = self._run(event.job, {"errorMessage": facet})
        inputs = (
            [self._events.InputDataset(self._namespace, f"datasets/{event.dataset}")]
            if event.dataset
            else []
        )
        self._emit(kind, event.created_at, run, event.model, inputs)

    def _inputs(self, published: Published) -> list[Any]:
        """The dataset with its number of rows, and the parent version."""
        version = published.version
        inputs = []
        if version.parent is not None:
            parent = f"models/{version.model}/versions/{version.parent}"
            inputs.append(self._events.InputDataset(self._namespace, parent))
        if version.dataset is not None:
            learned = (line.rows for line in version.lineage if line.dataset == version.dataset)
            facet = self._facets.data_quality_metrics_input_dataset
            facets = {
                "dataQualityMetrics": facet.DataQualityMetricsInputDatasetFacet(
                    columnMetrics={}, rowCount=next(learned, None)
                )
            }
            name = f"datasets/{version.dataset}"
            inputs.append(self._events.InputDataset(self._namespace, name, inputFacets=facets))
        return inputs

    def _run(self, job: str, facets: dict[str, Any] | None = None) -> Any:
        identifier = str(uuid5(NAMESPACE_URL, f"{self._service}/v1/jobs/{job}"))
        return self._events.Run(identifier, facets=facets or {})

    def _emit(
        self,
        kind: str,
        at: datetime,
        run: Any,
        model: str,
        inputs: list[Any],
        outputs: Sequence[Any] = (),
    ) -> None:
        event = self._events.RunEvent(
            eventTime=at.isoformat(),
            producer=_PRODUCER,
            run=run,
            job=self._events.Job(self._namespace, model),
            eventType=getattr(self._events.RunState, kind),
            inputs=inputs,
            outputs=list(outputs),
        )
        try:
            self._transport.emit(event)
        except self._requests.RequestException as error:
            status = error.response.status_code if error.response is not None else 500
            if status >= 500 or status in _TRANSIENT:
                raise TargetUnavailable(f"OpenLineage: {error}") from error
            raise MirrorError(f"OpenLineage: {error}") from error
