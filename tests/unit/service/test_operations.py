"""Probes, metrics, request ids, logs, settings, the description of the API."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from cmcl.contract.errors import InvalidUri
from cmcl.storage.local import LocalStore
from service.api.operations import Probes
from service.app import Parts, create_app
from service.core.settings import Settings
from service.jobs.reconciler import Reconciler
from service.telemetry.logs import log_config
from tests.fakes.app_client import AppClient
from tests.fakes.control_plane import SPEC, ControlPlane, open_databases
from tests.fakes.crashes import FaultAtMoment
from tests.fakes.database_outage import outage
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.served_app import served


def test_an_outage_of_the_store_takes_no_replica_out_of_service(plane: ControlPlane) -> None:
    plane.store.broken = ""
    # The loops cannot go on either.
    plane.reconciler.monitor._looked_at -= 1000
    plane.app.state.loops = [plane.reconciler.monitor]
    response = plane.client.get("/readyz")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    assert "broken" in response.json()["checks"]["store"]
    assert "not been looked at" in response.json()["checks"]["monitor"]
    assert plane.client.get("/healthz").status_code == 200
    assert plane.client.get("/v1/models").status_code == 200


def test_an_outage_of_the_database_takes_no_replica_out_of_service(plane: ControlPlane) -> None:
    plane.clock.advance(121)
    with outage(plane.context.database):
        response = plane.client.get("/readyz")
        assert plane.client.get("/v1/models").status_code == 503
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    assert "disk I/O error" in response.json()["checks"]["database"]


def test_a_disk_that_is_full_is_shown(plane: ControlPlane) -> None:
    """The database can still be read."""
    with plane.context.database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    answers = [
        plane.client.post("/v1/models", json={"name": f"new-{number}", **SPEC}).status_code
        for number in range(50)
    ]
    assert answers[-1] == 503
    response = plane.client.get("/readyz")
    assert "full" in response.json()["checks"]["database"]
    with plane.context.database.write() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    plane.app.state.probes = Probes()
    assert plane.client.get("/readyz").json()["status"] == "ok"


class _HangingStore(FlakyStore):
    """Does not respond before the test releases it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(LocalStore(folder))
        self.answers = threading.Event()

    def keys(self, prefix: str) -> Iterator[str]:
        self.answers.wait()
        return super().keys(prefix)


def test_a_store_that_hangs_delays_no_other_request(plane: ControlPlane) -> None:
    store = _HangingStore(plane.folder / "hanging")
    app = create_app(plane.context.settings, Parts(store=store, launcher=plane.launcher))
    app.state.probes = Probes(timeout_seconds=0.05)
    try:
        with served(app) as url, httpx.Client(base_url=url, timeout=60) as client:
            # More than there are threads for requests.
            for _ in range(50):
                checks = client.get("/readyz").json()["checks"]
                assert checks["store"] == "no response within 0.05 s"
            assert client.get("/v1/models").status_code == 200
    finally:
        store.answers.set()
        app.state.context.close()


def test_a_stalled_reconciler_is_reported(plane: ControlPlane) -> None:
    plane.clock.advance(121)
    response = plane.client.get("/readyz")
    assert response.status_code == 503
    assert "no round" in response.json()["checks"]["reconciler"]
    plane.tick()
    assert plane.client.get("/readyz").status_code == 200


def test_metrics_count_jobs_and_requests(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset("one"))
    plane.post_dataset("two")
    plane.client.get("/v1/jobs/job-0123456789ab")
    text = plane.client.get("/metrics").text
    for line in (
        'cmcl_service_jobs{state="queued"} 1.0',
        'cmcl_service_jobs_finished_total{reason="",state="published"} 1.0',
        'cmcl_service_http_request_seconds_count{method="GET",route="/v1/jobs/{job}",status="404"}',
    ):
        assert line in text


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'say "hi"'])
def test_an_odd_request_id_is_replaced(plane: ControlPlane, given: str) -> None:
    response = plane.client.get("/v1/nowhere", headers={"X-Request-ID": given})
    assert len(response.headers["x-request-id"]) == 32


def test_an_unhandled_error_is_a_problem_and_logged(
    plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    with plane.context.database.write() as connection:
        connection.exec_driver_sql("UPDATE models SET spec = '{}'")
    response = plane.client.get("/v1/models/scenes", headers={"X-Request-ID": "abc-2"})
    assert response.status_code == 500
    assert response.json()["title"] == "Internal server error"
    assert "abc-2" in response.json()["detail"]
    assert "Traceback" in caplog.text


def test_the_log_configuration_can_be_applied() -> None:
    """Retries of the client of Kubernetes are not logged."""
    code = (
        "import logging.config, urllib3; from service.telemetry.logs import log_config;"
        "logging.config.dictConfig(log_config('debug'));"
        "logging.getLogger('service.x').debug('hello', extra={'job': 'job-1'});"
        "urllib3.PoolManager().request('GET', 'http://127.0.0.1:1')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert json.loads(done.stderr.splitlines()[0])["job"] == "job-1"
    assert "MaxRetryError" in done.stderr
    assert "Retrying" not in done.stderr
    assert log_config("info")["disable_existing_loggers"] is False


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMCL_RANKS", "4")
    monkeypatch.setenv("CMCL_ALLOWED_PREFIXES", "s3://a/x, s3://b,")
    monkeypatch.setenv("CMCL_TRUSTED_PROXIES", "10.0.3.7, fd00::/8")
    settings = Settings()
    assert settings.trusted_proxies == ("10.0.3.7", "fd00::/8")
    assert (settings.ranks, settings.allowed_prefixes) == (4, ("s3://a/x", "s3://b"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRUSTED_PROXIES", "*"),
        ("TRUSTED_PROXIES", "ingress"),
        ("RANKS", "0"),
        ("LAUNCHER", "slurm"),
        ("PORT", "70000"),
    ],
)
def test_a_bad_setting_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"CMCL_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_each_operation_lists_its_errors_as_problems(plane: ControlPlane) -> None:
    schema = plane.app.openapi()
    responses = schema["paths"]["/v1/datasets"]["post"]["responses"]
    assert set(responses) >= {"400", "401", "403", "404", "409", "413", "415", "422", "429", "503"}
    assert list(responses["202"]["content"]) == ["application/json"]
    for status, response in responses.items():
        if int(status) >= 400:
            name = response["$ref"].rpartition("/")[2]
            described = schema["components"]["responses"][name]
            assert list(described["content"]) == ["application/problem+json"]


def test_the_reconciler_outlives_a_failed_round(plane: ControlPlane) -> None:
    """Run for real in a thread, with a lifeline that only counts."""
    lifeline, stop = FaultAtMoment(), threading.Event()
    reconciler: Reconciler = plane.crashing_reconciler(lifeline)
    thread = threading.Thread(target=reconciler.run, args=[stop], daemon=True)
    errors = plane.context.metrics.registry
    name, labels = "cmcl_service_reconcile_errors_total", {"error": "DatabaseUnavailable"}
    deadline = time.monotonic() + 60
    with outage(plane.context.database):
        thread.start()
        while (errors.get_sample_value(name, labels) or 0) < 2:
            assert time.monotonic() < deadline
            stop.wait(0.05)
    assert thread.is_alive()
    stop.set()
    thread.join(60)
    assert not thread.is_alive()


def test_a_service_that_cannot_be_made_leaves_no_database_open(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'cmcl.db'}"
    settings = Settings(database_url=url, store_uri="ftp://elsewhere")
    with pytest.raises(InvalidUri):
        create_app(settings)
    assert (tmp_path / "cmcl.db").exists()
    assert open_databases(tmp_path) == []


def test_the_lifespan_runs_the_reconciler(tmp_path: Path) -> None:
    settings = Settings(
        database_url=f"sqlite:///{tmp_path / 'cmcl.db'}", store_uri=(tmp_path / "store").as_uri()
    )
    app = create_app(settings, Parts())
    with AppClient(app).running():
        names = [thread.name for thread in threading.enumerate()]
        assert "reconciler" in names
    assert "reconciler" not in [thread.name for thread in threading.enumerate()]
