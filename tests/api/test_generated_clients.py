"""Clients generated from both OpenAPI documents work against both servers."""

import asyncio
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from cmcl.contract.model import ModelSpec
from tests.architecture.repository import ROOT
from tests.fakes.control_plane import SPEC, ControlPlane
from tests.fakes.versions import publish_version, random_heads
from tests.unit.serve.conftest import Replica
from workers.serve.settings import ServeSettings

_DOCUMENTS = {"plane": "openapi.json", "endpoint": "openapi-embeddings.json"}
# A format of rows that the generator does not support, and can treat as bytes.
_ARROW = {"application/vnd.apache.arrow.stream": "application/octet-stream"}
_SECONDS = 120
_IMAGE = [0.1, 0.2, 0.3, 0.4]


class Generated:
    """A generated client's package, whose requests go to an app in this process."""

    def __init__(self, package: str, app: Any) -> None:
        self._package = package
        self._app = app
        self.models = self._module("models")

    def call(self, operation: str, *arguments: object, **options: object) -> Any:
        """Return the parsed response of an operation `tag.name`; None for an undocumented status."""
        detailed = self._module(f"api.{operation}").asyncio_detailed
        return asyncio.run(self._answer(detailed, *arguments, **options))

    async def _answer(
        self,
        detailed: Callable[..., Coroutine[Any, Any, Any]],
        *arguments: object,
        **options: object,
    ) -> Any:
        address = "http://localhost"
        client = self._module("client").Client(base_url=address)
        transport = httpx.ASGITransport(self._app)
        async with httpx.AsyncClient(transport=transport, base_url=address) as sender:
            client.set_async_httpx_client(sender)
            return (await detailed(*arguments, client=client, **options)).parsed

    def _module(self, name: str) -> ModuleType:
        return importlib.import_module(f"{self._package}.{name}")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Generate both clients' packages without a warning, and return their names."""
    folder = tmp_path_factory.mktemp("generated")
    config = folder / "config.json"
    config.write_text(json.dumps({"content_type_overrides": _ARROW, "post_hooks": []}))
    names = {server: f"generated_{server}" for server in _DOCUMENTS}
    for server, document in _DOCUMENTS.items():
        command = [
            *(sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning"),
            *("--path", str(ROOT / "docs" / document), "--config", str(config)),
            *("--meta", "none", "--output-path", str(folder / names[server])),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield names
    sys.path.remove(str(folder))


@pytest.fixture
def plane(packages: dict[str, str], tmp_path: Path) -> Iterator[tuple[ControlPlane, Generated]]:
    """A control plane, and the client generated from its OpenAPI document."""
    running = ControlPlane(tmp_path)
    yield running, Generated(packages["plane"], running.app)
    running.close()


def test_generated_clients_create_a_model_post_a_dataset_and_embed(
    packages: dict[str, str], plane: tuple[ControlPlane, Generated]
) -> None:
    running, control = plane
    body = control.models.NewModel.from_dict({"name": "scenes", **SPEC})
    model = control.call("models.post_model", body=body)
    assert (model.name, model.width) == ("scenes", SPEC["width"])
    posted = control.models.NewDataset.from_dict(running.dataset_body("one"))
    accepted = control.call("datasets.post_dataset", body=posted)
    assert (accepted.job.state, accepted.job.model) == ("queued", "scenes")

    # Like the job, but without the training.
    spec = ModelSpec.model_validate(SPEC)
    publish_version(running.store, "scenes", 1, spec, random_heads(spec, 1), generation=1)
    replica = Replica(running.store, ServeSettings(store=running.store.uri))
    replica.poll()
    endpoint = Generated(packages["endpoint"], replica.app)
    request = endpoint.models.EmbeddingRequest("scenes", input_=_IMAGE, modality="image")
    answer = endpoint.call("embeddings.create_embeddings", body=request)
    assert answer.model == "scenes@1"
    assert len(answer.data[0].embedding) == SPEC["width"]
    item = endpoint.models.Item("image", feature=_IMAGE)
    of_items = endpoint.models.EmbeddingRequest("scenes", input_=[item])
    again = endpoint.call("embeddings.create_embeddings", body=of_items)
    assert again.data == answer.data
    (listed,) = endpoint.call("models.list_models").data
    assert (listed.id, listed.version) == ("scenes", 1)


def test_generated_clients_read_the_errors_of_both(
    packages: dict[str, str], plane: tuple[ControlPlane, Generated]
) -> None:
    running, control = plane
    problem = control.call("models.read_model", "nothing")
    assert (problem.status, problem.type_) == (404, "urn:cmcl:problem:not-found")
    replica = Replica(running.store, ServeSettings(store=running.store.uri))
    replica.poll()
    endpoint = Generated(packages["endpoint"], replica.app)
    request = endpoint.models.EmbeddingRequest("nothing", input_=_IMAGE, modality="image")
    error = endpoint.call("embeddings.create_embeddings", body=request).error
    assert error.code == "model_not_found"
