"""Other people's programs work unchanged: clients of OpenAI's API, runtimes of exports, vector stores.

They run in an environment of their own, without cmcl, in one process against one endpoint.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmcl.storage.local import LocalStore
from tests.architecture.repository import ROOT
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.served_app import served
from tests.fakes.versions import publish_version
from tests.unit.serve.collections.conftest import Searching, opened
from tests.unit.serve.collections.scene import feature
from tests.unit.serve.exported import SPEC, features, heads, unpacked

# "four" has as many letters as a feature has numbers.
TEXTS = ["a cat", "tree", "four"]
EXPORTED = "exported"
_PROGRAMS = Path(__file__).parent / "programs.py"
_SECONDS = 600
CLIENTS = (
    *("openai_client", "openai_async", "langchain", "llama_index", "haystack", "litellm"),
    "pydantic_ai",
)
STORES = ("duckdb", "lancedb", "qdrant")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searching]:
    """A replica with a text encoder, a collection, and a model that is exported."""
    folder = tmp_path_factory.mktemp("endpoint")
    with opened(FlakyStore(LocalStore(folder / "store"))) as replica:
        publish_version(replica.store, EXPORTED, 1, SPEC, heads(), 1)
        replica.poll()
        items = [
            {"id": f"image-{n}", "modality": "image", "feature": feature("image", n).tolist()}
            for n in range(9)
        ]
        replica.add("things", [*items[:8], {**items[8], "payload": {"colour": "red"}}])
        texts = [
            {"id": text, "modality": "text", "text": text, "payload": {"title": text.upper()}}
            for text in TEXTS
        ]
        replica.ask("PUT", "/texts", {"model": "scenes", "text_fields": ["title"]})
        revision = replica.add("texts", texts)
        replica.found("texts", revision, words=TEXTS[0])
        replica.found("things", 2, query={"modality": "image", "feature": items[0]["feature"]})
        yield replica


@pytest.fixture(scope="module")
def found(
    endpoint: Searching, client_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The result of each program."""
    folder = tmp_path_factory.mktemp("programs")
    for format_ in ("parquet", "arrow"):
        response = endpoint.ask("GET", f"/things/export?format={format_}")
        (folder / f"items.{format_}").write_bytes(response.content)
    with served(endpoint.app) as url:
        settings = {
            "url": url,
            "repository": str(ROOT),
            "model": "scenes",
            "texts": TEXTS,
            "features": {name: features(name).tolist() for name in SPEC.widths},
            "onnx": str(unpacked(endpoint, "onnx", folder / "onnx", EXPORTED)),
            "mlflow": str(unpacked(endpoint, "mlflow", folder / "mlflow", EXPORTED)),
            "parquet": str(folder / "items.parquet"),
            "arrow": str(folder / "items.arrow"),
            "scratch": str(folder / "lancedb"),
            "query": embedded(endpoint, "image", [feature("image", 3).tolist()])[0].tolist(),
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        command = [str(client_python), "-I", str(_PROGRAMS), str(folder / "settings.json")]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False, cwd=folder
        )
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


def embedded(replica: Searching, modality: str, rows: object, model: str = "scenes") -> np.ndarray:
    response = replica.embed(model=model, modality=modality, input=rows)
    assert response.status_code == 200, response.text
    return np.array([each["embedding"] for each in response.json()["data"]])


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_of_openais_api_embeds_texts(
    endpoint: Searching, found: dict[str, Any], client: str
) -> None:
    assert "error" not in found[client], found[client]
    expected = embedded(endpoint, "text", TEXTS)
    np.testing.assert_allclose(np.array(found[client]), expected, atol=1e-6)


def test_an_agent_retrieves_passages_from_a_vector_store(
    endpoint: Searching, found: dict[str, Any]
) -> None:
    """Its question is "a", as `TestModel` makes it up."""
    output, passages = found["pydantic_ai_agent"]
    assert output == "done"
    nearest = endpoint.found("texts", query={"modality": "text", "text": "a"}, top_k=2)
    assert passages == [[text, text.upper()] for text in nearest]


@pytest.mark.parametrize("client", ["langchain_default", "langchain_default_with_modality"])
def test_token_ids_are_refused_with_the_option_to_set(found: dict[str, Any], client: str) -> None:
    error = found[client]["error"]
    assert error.startswith("BadRequestError")
    assert "looks like token ids" in error
    assert "check_embedding_ctx_length=False" in error


@pytest.mark.parametrize("runtime", ["onnxruntime", "mlflow"])
def test_a_runtime_computes_what_the_endpoint_answers(
    endpoint: Searching, found: dict[str, Any], runtime: str
) -> None:
    assert "error" not in found[runtime], found[runtime]
    for modality in SPEC.widths:
        expected = embedded(endpoint, modality, features(modality)[:20].tolist(), EXPORTED)
        np.testing.assert_allclose(found[runtime][modality][:20], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("store", STORES)
def test_a_store_loads_a_collection_and_finds_as_the_endpoint_does(
    endpoint: Searching, found: dict[str, Any], store: str
) -> None:
    assert "error" not in found[store], found[store]
    query = {"modality": "image", "feature": feature("image", 3).tolist()}
    expected = endpoint.found("things", query=query, top_k=50, exact=True)
    assert len(expected) == 9
    assert found[store] == expected


def test_arrow_names_the_version_of_its_vectors(found: dict[str, Any]) -> None:
    assert found["arrow"] == ["scenes@1", *(f"image-{n}" for n in range(9))]


def test_a_vector_store_of_langchain_finds_replaces_and_removes(
    endpoint: Searching, found: dict[str, Any]
) -> None:
    answer = found["langchain_store"]
    assert "error" not in answer, answer
    assert answer["best"] == [[True, TEXTS[1], {"page": 1}]]
    [[text, score]] = answer["filtered"]
    vectors = embedded(endpoint, "text", TEXTS)
    assert (text, score) == (TEXTS[2], pytest.approx(float(vectors[1] @ vectors[2]), abs=1e-5))
    assert answer["left"] == ["another", TEXTS[2]]
    assert answer["same_id"]
