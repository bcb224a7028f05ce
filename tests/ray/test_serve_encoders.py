"""Raw items through the encoders of the stack, which are processes of their own, beside features."""

import base64
import io
import wave
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from cmcl.cli.endpoint import RawItems
from cmcl.client import Client, Item, Query
from cmcl.contract.api.endpoint import Span
from cmcl.contract.encoder import EncoderIdentity, EncoderSpec, parse_encoder
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import PARTS, EndpointParts
from cmcl.storage.object_store import ObjectStore
from tests.conftest import ENCODERS
from tests.fakes.encoder_cases import features
from tests.fakes.versions import publish_version, random_heads
from tests.ray.attempts import wait_until
from workers.encoders.media import Raw
from workers.encoders.synthetic import SyntheticEncoder
from workers.model.heads import ModalityHeads

RUNNING: dict[str, EncoderSpec] = {spec.takes: spec for spec in map(parse_encoder, ENCODERS)}
# Of the same width, and other features: their length is 1.
OTHER = RUNNING["image"].model_copy(update={"normalize": True})
# The endpoint does not have it.
PLACES = EncoderSpec(name="places", kind="synthetic", takes="numbers", width=8)
# More than one pass of the encoder.
TEXTS = [f"a chair, {number} times" for number in range(100)]
SECONDS = 300.0

pytestmark = pytest.mark.ray


def publish(store: ObjectStore, model: str, encoders: Sequence[EncoderSpec]) -> ModalityHeads:
    """Publish version 1, whose features are those of the encoders, and return its heads."""
    bound = {each.takes: {"width": each.width, "encoder": each.name} for each in encoders}
    spec = ModelSpec.model_validate({"width": 16, "modalities": {"touch": 12, **bound}})
    heads = random_heads(spec, seed=1)
    identities: dict[str, EncoderIdentity] = {
        each.takes: SyntheticEncoder(each).identity() for each in encoders
    }
    publish_version(store, model, 1, spec, heads, generation=1, encoders=identities)
    return heads


def ask(url: str, model: str, given: object) -> httpx.Response:
    body = {"model": model, "input": given}
    return httpx.post(f"{url}/v1/embeddings", json=body, timeout=SECONDS)


def embeddings(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.array([each["embedding"] for each in response.json()["data"]])


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 20, 30)).save(file, "PNG")
    return file.getvalue()


def item(raw: Raw) -> dict[str, object]:
    if isinstance(raw, str):
        return {"modality": "text", "text": raw}
    assert isinstance(raw, bytes)
    return {"modality": "image", "data": base64.b64encode(raw).decode()}


def matches(url: str, model: str) -> dict[str, bool]:
    """By modality, whether the endpoint's encoder is that of the version's features."""
    answer = httpx.get(f"{url}/v1/models/{model}", timeout=SECONDS).raise_for_status()
    return {name: each["matches"] for name, each in answer.json()["encoders"].items()}


def test_raw_items_are_embedded_and_an_encoder_that_differs_or_is_missing_is_named(
    store: ObjectStore, serve_url: str
) -> None:
    heads = publish(store, "raw", [RUNNING["text"], RUNNING["image"]])
    publish(store, "raw-others", [RUNNING["text"], OTHER, PLACES])
    for model in ("raw", "raw-others"):
        wait_until(lambda: ask(serve_url, model, TEXTS[0]).is_success)  # noqa: B023 - called in this round

    def expected(modality: str, *raw: Raw) -> np.ndarray:
        rows_BF = features(SyntheticEncoder(RUNNING[modality]), *raw)
        found: np.ndarray = heads.embed(modality, torch.from_numpy(rows_BF)).numpy()
        return found

    pictures = [picture(1), picture(2)]
    np.testing.assert_allclose(
        embeddings(ask(serve_url, "raw", TEXTS)), expected("text", *TEXTS), atol=1e-5
    )
    mixed = [item(pictures[0]), item(TEXTS[0]), item(pictures[1])]
    found = embeddings(ask(serve_url, "raw", mixed))
    np.testing.assert_allclose(found[[0, 2]], expected("image", *pictures), atol=1e-5)
    np.testing.assert_allclose(found[[1]], expected("text", TEXTS[0]), atol=1e-5)
    for wrong, reason in ((b"no image", "permitted are JPEG"), (pictures[0][:-25], "damaged")):
        refused = ask(serve_url, "raw", [item(pictures[0]), item(wrong)])
        assert refused.status_code == 400, refused.text
        assert "input[1]" in refused.json()["error"]["message"]
        assert reason in refused.json()["error"]["message"]
    assert matches(serve_url, "raw") == {"text": True, "image": True}
    parts = EndpointParts.model_validate_json(httpx.get(f"{serve_url}{PARTS}").content)
    assert parts == EndpointParts(
        encoders={spec.name: "ok" for spec in RUNNING.values()}, replicas={"RUNNING": 1}
    )

    place = {"modality": "numbers", "numbers": [48.86, 2.35]}
    for given, code in (
        (item(pictures[0]), "encoder_mismatch"),
        (place, "encoder_not_configured"),
    ):
        refused = ask(serve_url, "raw-others", [given])
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, code)
    refused = ask(serve_url, "raw-others", [item(pictures[0])])
    assert "normalize is False, expected True" in refused.json()["error"]["message"]
    shown = matches(serve_url, "raw-others")
    assert (shown["image"], shown["text"]) == (False, True)
    # Features are always answered.
    feature = {"modality": "image", "feature": [0.5] * OTHER.width}
    assert ask(serve_url, "raw-others", [feature]).status_code == 200


def wav(samples_N: np.ndarray, rate: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setparams((1, 2, rate, 0, "NONE", ""))
        written.writeframes(samples_N.tobytes())
    return file.getvalue()


def test_a_window_of_a_recording_is_found_with_its_seconds(
    store: ObjectStore, client: Client, tmp_path: Path
) -> None:
    publish(store, "heard", [RUNNING["audio"], RUNNING["image"]])
    rate = 1000
    samples_N = np.random.default_rng(0).integers(-9999, 9999, 38 * rate, np.int16)
    (tmp_path / "talk.wav").write_bytes(wav(samples_N, rate))
    wait_until(lambda: "heard" in {each.id for each in client.served_models()})
    client.create_collection("talks", "heard")
    # As the command line sends it: in two pieces, of 30 and 8 seconds.
    pieces = [*RawItems("audio", in_parts=True).read(tmp_path)]
    assert len(pieces) == 2
    still = Item("still", "image", data=picture(7), parent="film", start=3, end=3, thumbnail=True)
    written = client.add_items("talks", [*pieces, still], batch_size=1)
    for start in (26, 34):
        heard = wav(samples_N[start * rate : (start + 4) * rate], rate)
        query = Query("audio", data=heard)
        (hit,) = client.search("talks", query, 1, min_revision=written.revision).data
        assert (hit.parent, hit.at) == ("talk.wav", Span(start=start, end=start + 4))
        assert hit.score == pytest.approx(1, abs=1e-5)
    query = Query("image", data=picture(7))
    (hit,) = client.search("talks", query, 1, modalities=["image"], include=["thumbnail"]).data
    assert hit.at == Span(start=3, end=3)
    small = Image.open(io.BytesIO(base64.b64decode(hit.thumbnail or "")))
    assert (small.format, small.size) == ("JPEG", (40, 30))
