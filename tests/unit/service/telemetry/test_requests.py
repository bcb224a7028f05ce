"""Request metrics: bounded labels, and the time to the first byte."""

import asyncio
import time

from starlette.types import Receive, Scope, Send

from service.api.request_log import RequestLog
from service.telemetry.metrics import Metrics
from tests.fakes.control_plane import ControlPlane
from tests.unit.service.telemetry.samples import shown, value

COUNT = "http_request_seconds_count"


def test_odd_methods_and_paths_make_no_new_series(plane: ControlPlane) -> None:
    for number in range(20):
        plane.client.request(f"ODD{number}", f"/nowhere/{number}")
    registry = plane.context.metrics.registry
    samples = [
        sample
        for family in registry.collect()
        if family.name == "cmcl_service_http_request_seconds"
        for sample in family.samples
        if sample.name.endswith("_count") and sample.labels["method"] == "other"
    ]
    assert len(samples) == 1
    assert samples[0].value == 20
    assert samples[0].labels["route"] == "unknown"


def test_ids_in_paths_make_no_new_series(plane: ControlPlane) -> None:
    for number in range(5):
        plane.client.get(f"/v1/jobs/job-00000000000{number}")
    labels = {"method": "GET", "route": "/v1/jobs/{job}", "status": "404"}
    assert shown(plane, COUNT, **labels) == 5


def test_a_long_stream_counts_as_what_its_first_byte_took() -> None:
    begun: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        begun.append(time.perf_counter())
        await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, object]:
        return {"type": "http.request"}

    async def send(message: object) -> None:
        """Without a collector."""

    metrics = Metrics()
    scope = {"type": "http", "method": "GET", "path": "/stream", "headers": []}
    asked = time.perf_counter()
    asyncio.run(RequestLog(app, metrics)(scope, receive, send))
    labels = {"method": "GET", "route": "unknown", "status": "200"}
    seconds = value(metrics.registry, "http_request_seconds_sum", **labels)
    assert seconds is not None
    assert seconds <= begun[0] - asked
    assert value(metrics.registry, "http_requests_in_progress") == 0
