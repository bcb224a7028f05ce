"""Values of a registry, and a control plane with samples in every family."""

from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from cmcl.contract.api.jobs import JobState
from cmcl.contract.prepare import PreparationPhase
from service.registry.query_drift import QueryDriftLoop
from tests.fakes.control_plane import ControlPlane
from tests.fakes.preparer import report_progress as write_progress
from tests.fakes.preparer import requests_in
from tests.fakes.query_drift import report_query_drift
from tests.fakes.trainer import FIGURES, report_progress, train


def shown(plane: ControlPlane, name: str, **labels: str) -> float | None:
    """The value of cmcl_service_<name>; None if there is no such series."""
    return value(plane.context.metrics.registry, name, **labels)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    """The value of cmcl_service_<name> in a registry."""
    return registry.get_sample_value(f"cmcl_service_{name}", labels)


def report_running(plane: ControlPlane, job: str) -> None:
    """Run a job with all figures of progress, some seconds after the last scrape."""
    attempt = plane.tick_to(job, JobState.RUNNING).attempt
    report_progress(plane.store, job, attempt, "training", 3, FIGURES)
    plane.tick()
    plane.clock.advance(5)


def report_preparing(plane: ControlPlane, job: str, phase: PreparationPhase, **fields: Any) -> None:
    """Report the progress of a job that is being prepared, some seconds after the last scrape."""
    plane.preparer = lambda _: None
    plane.tick_to(job, JobState.PREPARING)
    plane.tick()
    (request,) = (
        each for each in requests_in(plane.store) if each.dataset == plane.job(job).dataset
    )
    figures = {"rows_per_second": 4.0, "eta_seconds": 1.5, **fields}
    write_progress(plane.store, request, phase, **figures)
    plane.tick(3)
    plane.clock.advance(5)


def every_family(folder: Path) -> list[Metric]:
    """All metrics, each with at least one sample: published jobs and a running one."""
    plane = ControlPlane(folder)
    plane.create_model()
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    train(plane.store, job, 1)
    plane.store.broken = "runs/"
    plane.tick()
    plane.store.broken = None
    plane.clock.advance(60)
    plane.run_to_end(job)
    report_running(plane, plane.post_dataset("two"))
    report_preparing(plane, plane.post_dataset("three"), "encoding", rows_done=2, rows_total=8)
    report_query_drift(plane.store, {"image": [0.5]})
    QueryDriftLoop(plane.context).look()
    families = list(plane.context.metrics.registry.collect())
    plane.close()
    return families


def labels_of(family: Metric) -> set[str]:
    """The labels of its series, without the buckets of a histogram."""
    return {label for sample in family.samples for label in sample.labels} - {"le"}
