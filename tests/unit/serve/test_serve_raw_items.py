"""Raw items of all media, with the encoder that the modality is bound to; OpenAI's own client, unchanged."""

import base64
from collections.abc import Iterator

import numpy as np
import openai
import pytest

from tests.fakes.letter_encoder import IDENTITY, LETTERS, LetterEncoders
from tests.fakes.served_app import served
from tests.unit.serve.conftest import Replica
from workers.serve.encoders.port import EncoderTimeout

# A quarter of what the encoder gives, which has the same direction and is no list of token ids.
FEATURES = {"a cat": [1.25, 0.5, 0, 0], "tree": [1, 0, 0.5, 0]}


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
    """The client requests base64 by default, and decodes it."""
    answer = client.embeddings.create(model="scenes", input=list(FEATURES))
    assert answer.model == "scenes@1"
    got = np.array([each.embedding for each in answer.data])
    np.testing.assert_allclose(got, reference(with_encoder), atol=1e-6)


def test_openais_client_understands_our_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.embeddings.create(model="missing", input="a cat")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.embeddings.create(model="scenes", input="a cat", dimensions=7)
    assert wrong.value.param == "dimensions"


def test_an_item_that_cannot_be_encoded_is_named(with_encoder: Replica) -> None:
    response = with_encoder.embed(modality=None, input=["a cat", ""])
    assert response.status_code == 400
    assert "input[1] cannot be encoded: it is empty" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "found"), [({"data": "AAAA"}, "a file"), ({"numbers": [1.5]}, "numbers")]
)
def test_an_item_of_another_form_than_the_encoder_takes_is_named(
    with_encoder: Replica, content: dict[str, object], found: str
) -> None:
    items = [{"modality": "text", "text": "a"}, {"modality": "text", **content}]
    response = with_encoder.embed(modality=None, input=items)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "wrong_media")
    expected = f"input[1] is {found}; modality 'text' of model 'scenes' takes a text or features"
    assert error["message"] == expected


def test_an_encoder_that_is_not_configured_here_is_409_and_features_are_answered(
    serving: Replica,
) -> None:
    """A client need not try again, which 503 would ask it to."""
    response = serving.embed(modality=None, input="a cat")
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (409, "encoder_not_configured")
    assert "bound to encoder 'letters', which is not configured" in error["message"]
    assert serving.embed(modality="text", input=FEATURES["tree"]).status_code == 200


def test_an_encoder_of_another_width_is_409(with_encoder: Replica) -> None:
    with_encoder.encoders = LetterEncoders(LETTERS.model_copy(update={"width": 7}))
    with_encoder.app = with_encoder.app_of(with_encoder.args)
    response = with_encoder.embed(modality=None, input="a cat")
    assert response.status_code == 409
    assert "width is 7, expected 4" in response.json()["error"]["message"]


ANOTHER = IDENTITY.model_copy(update={"model": "another"})


def test_another_encoder_than_the_one_of_the_features_is_409_with_field_and_values(
    with_encoder: Replica,
) -> None:
    with_encoder.publish(version=2, encoders={"text": ANOTHER})
    with_encoder.poll()
    response = with_encoder.embed(modality=None, input=["a cat"])
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (409, "encoder_mismatch")
    assert "model is None, expected 'another'" in error["message"]
    assert "scenes@2" in error["message"]
    # Features are answered, and so is the version before, whose encoder is not known.
    assert with_encoder.embed(modality="text", input=FEATURES["tree"]).status_code == 200
    before = with_encoder.embed(model="scenes@1", modality=None, input=["a cat"])
    assert before.status_code == 200


@pytest.mark.parametrize(
    ("takes", "content", "feature"),
    [
        ("image", {"data": base64.b64encode(b"\x01\x02\x03").decode()}, [3, 1, 2, 3]),
        ("image", {"data": "data:image/png;base64,AQID"}, [3, 1, 2, 3]),
        ("audio", {"data": "AQID"}, [3, 1, 2, 3]),
        ("video", {"data": "AQID"}, [3, 1, 2, 3]),
        ("numbers", {"numbers": [2, 3.5]}, [2, 3.5, 5.5, 1]),
        ("text", {"text": "tree"}, [4, 0, 2, 0]),
    ],
)
def test_every_medium_has_a_form(
    with_encoder: Replica, takes: str, content: dict[str, object], feature: list[float]
) -> None:
    with_encoder.encoders = LetterEncoders(LETTERS.model_copy(update={"takes": takes}))
    with_encoder.app = with_encoder.app_of(with_encoder.args)
    items = [{"modality": "text", **content}, {"modality": "text", "feature": feature}]
    response = with_encoder.embed(modality=None, input=items)
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert data[0]["embedding"] == data[1]["embedding"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": "?"}, "input[0] is not base64"),
        ({"numbers": [1, "2"]}, 'input[0].numbers[1] is "2"; permitted is a number'),
        ({"numbers": [1], "text": "a"}, "input[0] has text and numbers; permitted"),
        (
            {"numbers": [0.5] * 16385},
            "input[0].numbers is a list of 16385; permitted is a list of length <= 16384",
        ),
    ],
)
def test_a_wrong_raw_item_is_named(
    with_encoder: Replica, content: dict[str, object], message: str
) -> None:
    response = with_encoder.embed(modality=None, input=[{"modality": "text", **content}])
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_an_unavailable_encoder_is_503(with_encoder: Replica) -> None:
    assert isinstance(with_encoder.encoders, LetterEncoders)
    with_encoder.encoders.is_down = True
    response = with_encoder.embed(modality=None, input="a cat")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert with_encoder.embed().status_code == 200


@pytest.mark.parametrize(
    ("texts", "words"), [(["a"], "for 1 item; try again"), (["a"] * 32, "for 32 items; send fewer")]
)
def test_an_encoder_that_has_no_time_is_503_and_says_what_to_do(
    with_encoder: Replica, texts: list[str], words: str
) -> None:
    async def run_out_of_time() -> None:
        raise EncoderTimeout("letters", 10)

    assert isinstance(with_encoder.encoders, LetterEncoders)
    with_encoder.encoders.during = run_out_of_time
    response = with_encoder.embed(modality="text", input=texts)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    error = response.json()["error"]
    assert error["code"] == "encoder_timeout"
    assert f"gave no result within 10 s {words}" in error["message"]


def test_texts_and_features_come_in_one_request(with_encoder: Replica) -> None:
    items = [
        {"modality": "text", "text": "tree"},
        {"modality": "image", "feature": [1, 2, 3, 4, 5]},
        {"modality": "text", "feature": FEATURES["tree"]},
    ]
    data = with_encoder.embed(modality=None, input=items).json()["data"]
    assert data[0]["embedding"] == data[2]["embedding"] != data[1]["embedding"]
