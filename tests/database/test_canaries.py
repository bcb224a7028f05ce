"""Canaries on both databases: of several concurrent decisions, one takes effect."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from service.database.queries import canaries
from service.registry import canary
from tests.fakes.control_plane import ControlPlane
from tests.fakes.observations import agreement, observe

CANARY = "/v1/models/scenes/canary"


def test_a_canary_is_judged_once_by_concurrent_replicas(tmp_path: Path, database_url: str) -> None:
    plane = ControlPlane(tmp_path, database_url=database_url)
    plane.create_model()
    for name in ("one", "two"):
        plane.run_to_end(plane.post_dataset(name))
    rule = {"min_requests": 5, "min_cosine": 0.1, "promote_after": 5}
    body = {"version": 1, "shadow": 1, "rule": rule}
    assert plane.client.put(CANARY, json=body).status_code == 200
    plane.tick()
    observe(plane.store, shadowed=5, pairs=agreement(5, 0.75))
    with plane.context.database.read() as connection:
        record = canaries.running(connection, "scenes")
    assert record is not None
    ready = Barrier(4)

    def look(_: int) -> None:
        ready.wait()
        canary.judge_canary(plane.context, record)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(look, range(4)))
    plane.tick()
    assert plane.answering() == (3, 1)
    kinds = [event["kind"] for event in plane.client.get("/v1/events?limit=200").json()["items"]]
    assert kinds.count("canary.promoted") == 1
    assert plane.client.get(CANARY).status_code == 404
    plane.close()
