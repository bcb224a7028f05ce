"""A control plane whose datasets the tests prepare themselves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cmcl.contract.api.jobs import JobState
from cmcl.contract.prepare import PrepareRequest
from tests.fakes.control_plane import ControlPlane
from tests.fakes.preparer import requests_in

CLIP = {
    "name": "clip-image",
    "kind": "sentence-transformers",
    "takes": "image",
    "width": 4,
    "model": "/models/clip",
}


class Unattended(ControlPlane):
    """A control plane whose requests are not carried out. Its model binds `image` to an encoder."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(folder, **{"encoders": (CLIP,), **settings})
        self.preparer = lambda _: None
        if not self.client.get("/v1/models").json()["items"]:
            self.create_model(modalities={"image": {"encoder": "clip-image"}, "text": 3})

    def request_of(self, job: str) -> PrepareRequest:
        """Return the request for the job's dataset, which is being prepared."""
        self.tick_to(job, JobState.PREPARING)
        for _ in range(5):
            for request in requests_in(self.store):
                if request.dataset == self.job(job).dataset:
                    return request
            self.tick()
        raise AssertionError(f"no request for {job}: {self.job(job)}")


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Unattended]:
    plane = Unattended(tmp_path)
    yield plane
    plane.close()
