"""Texts and files with an encoder; OpenAI's own client, unchanged."""

from collections.abc import Iterator

import numpy as np
import openai
import pytest

from tests.fakes.letter_encoder import LetterEncoders
from tests.fakes.served_app import served
from tests.unit.serve.conftest import Replica

FEATURES = {"a cat": [5, 2, 0, 0], "tree": [4, 0, 2, 0]}


@pytest.fixture
def client(with_encoder: Replica) -> Iterator[openai.OpenAI]:
    with (
        served(with_encoder.app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def reference(replica: Replica) -> np.ndarray:
    response = replica.embed(modality="text", input=list(FEATURES.values()))
    return np.array([each["embedding"] for each in response.json()["data"]])


def test_openais_client_embeds_texts(with_encoder: Replica, client: openai.OpenAI) -> None:
    """It asks for base64 by itself, and turns it into numbers."""
    answer = client.embeddings.create(model="scenes", input=list(FEATURES))
    assert answer.model == "scenes@1"
    got = np.array([each.embedding for each in answer.data])
    np.testing.assert_allclose(got, reference(with_encoder), atol=1e-6)


def test_openais_client_embeds_one_text_as_floats(
    with_encoder: Replica, client: openai.OpenAI
) -> None:
    answer = client.embeddings.create(
        model="scenes@1", input="a cat", encoding_format="float", dimensions=6, user="somebody"
    )
    np.testing.assert_allclose(answer.data[0].embedding, reference(with_encoder)[0], atol=1e-6)


def test_openais_client_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["scenes"]
    assert client.models.retrieve("scenes").owned_by == "cmcl"


def test_openais_client_understands_our_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.embeddings.create(model="nobody", input="a cat")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.embeddings.create(model="scenes", input="a cat", dimensions=7)
    assert wrong.value.param == "dimensions"


def test_an_item_that_cannot_be_encoded_is_named(with_encoder: Replica) -> None:
    response = with_encoder.embed(modality=None, input=["a cat", ""])
    assert response.status_code == 400
    assert "input[1] cannot be encoded: it is no text" in response.json()["error"]["message"]


def test_files_for_an_encoder_of_texts_are_refused(with_encoder: Replica) -> None:
    item = {"modality": "text", "data": "AAAA"}
    error = with_encoder.embed(modality=None, input=[item]).json()["error"]
    assert "takes texts, not files" in error["message"]


def test_an_unavailable_encoder_is_503(with_encoder: Replica) -> None:
    assert isinstance(with_encoder.encoders, LetterEncoders)
    with_encoder.encoders.is_down = True
    response = with_encoder.embed(modality=None, input="a cat")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert with_encoder.embed().status_code == 200


def test_texts_and_features_come_in_one_request(with_encoder: Replica) -> None:
    items = [
        {"modality": "text", "text": "tree"},
        {"modality": "image", "feature": [1, 2, 3, 4, 5]},
        {"modality": "text", "feature": FEATURES["tree"]},
    ]
    data = with_encoder.embed(modality=None, input=items).json()["data"]
    assert data[0]["embedding"] == data[2]["embedding"] != data[1]["embedding"]
