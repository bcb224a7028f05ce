"""A control plane whose model has one version, and the rounds that carry pre-flights on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cmcl.contract.preflight import Outlook, PreflightAnswer
from service.database.queries import preflights
from service.database.queries.preflights import PreflightRecord, PreflightState
from service.jobs.preflights import PreflightReconciler
from tests.fakes.control_plane import ControlPlane

OUTLOOK = Outlook(
    version=1,
    pair=("image", "text"),
    refusals=(),
    findings={},
    heads={},
    advice=("text: nothing is odd",),
)


@dataclass
class PreflightScene:
    """Operations on pre-flights; with the plane's own clock, launcher and store."""

    plane: ControlPlane
    rounds: PreflightReconciler

    def body(self, name: str = "new", **changes: Any) -> dict[str, Any]:
        pair = {"first": "image", "second": "text"}
        return {"pair": pair, "shards": [self.plane.shard(name)], **changes}

    def post(self, model: str = "scenes", name: str = "new") -> str:
        path = f"/v1/models/{model}/preflight"
        response = self.plane.client.post(path, json=self.body(name))
        assert response.status_code == 202, response.text
        preflight: str = response.json()["id"]
        return preflight

    def view(self, preflight: str) -> dict[str, Any]:
        response = self.plane.client.get(f"/v1/preflights/{preflight}")
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def row(self, preflight: str) -> PreflightRecord:
        with self.plane.context.database.read() as connection:
            found = preflights.find(connection, preflight)
        assert found is not None
        return found

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.rounds.tick()
            self.plane.clock.advance(1)

    def tick_to(self, preflight: str, state: PreflightState) -> PreflightRecord:
        for _ in range(10):
            if self.row(preflight).state == state:
                return self.row(preflight)
            self.tick()
        raise AssertionError(f"{preflight} did not come to {state}: {self.row(preflight)}")

    def store_result(self, preflight: str, attempt: int = 1, **answer: Any) -> None:
        """Store the result of the worker: by default an outlook."""
        result = PreflightAnswer(**(answer or {"outlook": OUTLOOK}))
        key = f"runs/{preflight}/a{attempt}/answer.json"
        self.plane.store.put(key, result.model_dump_json().encode())


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[PreflightScene]:
    plane = ControlPlane(tmp_path)
    plane.create_model()
    plane.run_to_end(plane.post_dataset())
    yield PreflightScene(plane, PreflightReconciler(plane.context))
    plane.close()
