"""A control plane whose model has three versions; the third one is live."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cmcl.contract.version import LivePointer
from tests.fakes.control_plane import ControlPlane
from workers.storage.versions import read_live

CANARY = "/v1/models/scenes/canary"


class CanaryApi:
    """The canary of the model through the API, and in live.json."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane

    def put(self, version: int = 2, status: int = 200, **body: object) -> dict[str, Any]:
        """Start a canary; a tenth of the callers gets it unless the body has another share."""
        terms = body or {"share": 0.1}
        answer = self.plane.client.put(CANARY, json={"version": version, **terms})
        assert answer.status_code == status, answer.text
        view: dict[str, Any] = answer.json()
        return view

    def get(self) -> dict[str, Any] | None:
        """The canary; None without one."""
        answer = self.plane.client.get(CANARY)
        assert answer.status_code in (200, 404), answer.text
        return answer.json() if answer.status_code == 200 else None

    def end(self, reason: str = "") -> int:
        """Abort the canary; return the status."""
        return self.plane.client.request("DELETE", CANARY, params={"reason": reason}).status_code

    def pointer(self) -> LivePointer:
        """live.json, after a round of the reconciler."""
        self.plane.tick()
        found = read_live(self.plane.store, "scenes")
        assert found is not None
        return found

    def events(self) -> list[tuple[str, int, Mapping[str, Any]]]:
        """Kind, version and details of what happened to canaries."""
        items = self.plane.client.get("/v1/events?limit=200").json()["items"]
        found = [item for item in items if item["kind"].startswith("canary.")]
        return [(item["kind"], item["version"], item["details"]) for item in found]

    def judged(self) -> dict[str, Any] | None:
        """Advance some seconds, and return the canary."""
        self.plane.tick(4)
        return self.get()


@pytest.fixture(scope="session")
def three_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published once: copying is faster than publishing."""
    folder = tmp_path_factory.mktemp("three-versions")
    made = ControlPlane(folder)
    made.create_model()
    for name in ("one", "two", "three"):
        made.run_to_end(made.post_dataset(name))
    made.close()
    return folder


@pytest.fixture
def plane(three_versions: Path, tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane with one model, `scenes`."""
    shutil.copytree(three_versions, tmp_path, dirs_exist_ok=True)
    plane = ControlPlane(tmp_path)
    plane.clock.advance(3600)
    yield plane
    plane.close()


@pytest.fixture
def canary_api(plane: ControlPlane) -> CanaryApi:
    return CanaryApi(plane)
