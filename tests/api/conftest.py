"""A control plane behind a real server, for tests that use only HTTP."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import uvicorn
from fastapi import FastAPI

from cmcl.stack_host import Ports
from tests.fakes.control_plane import ControlPlane

KEY = "operator-key-of-the-tests-0123456789abcdef"


@dataclass(frozen=True)
class Served:
    """The control plane, its address, and ids of its objects."""

    plane: ControlPlane
    address: str
    known: dict[str, object]

    @property
    def headers(self) -> dict[str, str]:
        """Headers that authenticate a request."""
        return {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A control plane that requires keys, with a model with versions, a waiting job and an open dataset."""
    folder = tmp_path_factory.mktemp("plane")
    before = ControlPlane(folder)
    before.create_model()
    # The first of them can be tried: the second one answers.
    for name in ("zero", "one"):
        before.run_to_end(before.post_dataset(name))
    job = before.post_dataset("two")
    body = before.dataset_body("three", sealed=False)
    dataset = before.client.post("/v1/datasets", json=body).json()["dataset"]["id"]
    known = {"model": "scenes", "version": 1, "job": job, "dataset": dataset}
    before.close()
    plane = ControlPlane(
        folder,
        before.launcher,
        auth="on",
        admin_key=KEY,
        requests_per_minute_per_owner=1_000_000,
        webhook_prefixes=("http://127.0.0.1:9",),
    )
    with _serving(plane.app) as address:
        yield Served(plane, address, known)
    plane.close()


@contextmanager
def _serving(app: FastAPI) -> Iterator[str]:
    port = Ports.free().service
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
