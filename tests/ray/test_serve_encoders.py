"""Raw texts through a real encoder's process, beside features, behind Serve's own proxy."""

import time

import httpx
import numpy as np
import pytest
import torch

from cmcl.contract.model import ModelSpec
from tests.fakes.versions import publish_version, random_heads
from workers.serve.encoders.spec import EncoderSpec
from workers.serve.encoders.synthetic import SyntheticEncoder
from workers.storage.object_store import ObjectStore

MODEL = "raw-texts"
# As the session's stack has it.
ENCODER = EncoderSpec(modality="text", kind="synthetic", width=8)
SPEC = ModelSpec(width=16, modalities={"image": 12, "text": 8})
# More than one pass of the encoder.
TEXTS = [f"a chair, {number} times" for number in range(100)]
SECONDS = 120.0

pytestmark = pytest.mark.ray


def ask(serve_url: str, **fields: object) -> httpx.Response:
    body = {"model": MODEL, "modality": "text", **fields}
    return httpx.post(f"{serve_url}/v1/embeddings", json=body, timeout=SECONDS)


@pytest.fixture
def model(serve_url: str, store: ObjectStore) -> None:
    """Version 1 of a model whose texts have the encoder's width, in all replicas."""
    publish_version(store, MODEL, 1, SPEC, random_heads(SPEC, 1), generation=1)
    deadline = time.monotonic() + SECONDS
    while ask(serve_url, input=[[0.5] * 8]).status_code != 200:
        assert time.monotonic() < deadline, "version 1 did not come"
        time.sleep(0.05)


@pytest.mark.usefixtures("model")
def test_texts_are_encoded_in_a_process_of_their_own_and_embedded(serve_url: str) -> None:
    encoder = SyntheticEncoder(ENCODER)
    features = encoder.features([encoder.read(text) for text in TEXTS])
    expected = random_heads(SPEC, seed=1).embed("text", torch.from_numpy(features)).numpy()
    response = ask(serve_url, input=TEXTS)
    assert response.status_code == 200, response.text
    got = np.array([each["embedding"] for each in response.json()["data"]])
    np.testing.assert_allclose(got, expected, atol=1e-5)

    refused = ask(serve_url, input=["a chair", "x" * (ENCODER.max_item_bytes + 1)])
    assert refused.status_code == 400, refused.text
    assert "input[1]" in refused.json()["error"]["message"]
