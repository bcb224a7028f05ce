"""Raw items through real processes of encoders, beside features, behind Serve's own proxy."""

import base64
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from cmcl.contract.encoder import EncoderSpec
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import PARTS, EndpointParts
from cmcl.stack import LocalStack
from cmcl.storage.uris import open_store
from tests.fakes.encoder_cases import features
from tests.fakes.versions import publish_version, random_heads
from tests.ray.encoder_application import PREFIX, deployed
from workers.encoders.media import Raw
from workers.encoders.synthetic import SyntheticEncoder

MODEL = "raw-items"
WIDTH = 8
ENCODERS = {
    modality: EncoderSpec(
        name=f"{modality}-encoder", kind="synthetic", takes=takes, width=WIDTH, num_cpus=0.1
    )
    for modality, takes in (("text", "text"), ("image", "image"), ("place", "numbers"))
}
SPEC = ModelSpec.model_validate(
    {
        "width": 16,
        "modalities": {
            "touch": 12,
            **{
                modality: {"width": WIDTH, "encoder": encoder.name}
                for modality, encoder in ENCODERS.items()
            },
        },
    }
)
HEADS = random_heads(SPEC, seed=1)
# More than one pass of the encoder.
TEXTS = [f"a chair, {number} times" for number in range(100)]
SECONDS = 300.0

pytestmark = pytest.mark.ray


class Application:
    """The application of `encoder_application`, and its driver."""

    def __init__(self, stack: LocalStack, file: Path) -> None:
        self.url = f"{stack.embeddings_url}{PREFIX}/v1"
        self._stack = stack
        self._file = file
        self._times = 0
        self._driver: subprocess.Popen[bytes] | None = None

    def deploy(self, encoders: Mapping[str, EncoderSpec]) -> None:
        """Deploy it with these encoders. Another declaration replaces their processes."""
        declared = [encoder.model_dump(mode="json") for encoder in encoders.values()]
        self._file.write_text(json.dumps(declared))
        self._times += 1
        if self._driver is None:
            command = [sys.executable, "-m", "tests.ray.encoder_application"]
            self._driver = self._stack.start_driver(
                [*command, self._stack.store_uri, str(self._file)]
            )
        else:
            self._driver.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + SECONDS
        while deployed(self._times) not in self._stack.log("driver").read_text().splitlines():
            assert self._driver.poll() is None, "the driver has ended"
            assert time.monotonic() < deadline, "the application did not start"
            time.sleep(0.1)

    def close(self) -> None:
        if self._driver is not None:
            self._driver.terminate()
            self._driver.wait(SECONDS)

    def ask(self, given: object) -> httpx.Response:
        body = {"model": MODEL, "input": given}
        return httpx.post(f"{self.url}/embeddings", json=body, timeout=SECONDS)

    def encoders(self) -> dict[str, dict[str, Any]]:
        answer = httpx.get(f"{self.url}/models/{MODEL}", timeout=SECONDS).raise_for_status()
        found: dict[str, dict[str, Any]] = answer.json()["encoders"]
        return found

    def parts(self) -> EndpointParts:
        url = self.url.removesuffix("/v1") + PARTS
        answer = httpx.get(url, timeout=SECONDS).raise_for_status()
        return EndpointParts.model_validate_json(answer.content)


@pytest.fixture
def application(stack: LocalStack, tmp_path: Path) -> Iterator[Application]:
    """Serving version 1, whose features are those of the encoders, with these encoders."""
    identities = {
        modality: SyntheticEncoder(encoder).identity() for modality, encoder in ENCODERS.items()
    }
    store = open_store(stack.store_uri)
    publish_version(store, MODEL, 1, SPEC, HEADS, generation=1, encoders=identities)
    made = Application(stack, tmp_path / "encoders.json")
    try:
        made.deploy(ENCODERS)
        yield made
    finally:
        made.close()


def expected(modality: str, raw: Sequence[Raw]) -> np.ndarray:
    """Embeddings of raw items, by an encoder of this process."""
    encoder = SyntheticEncoder(ENCODERS[modality])
    rows_BF = features(encoder, *raw)
    embeddings: np.ndarray = HEADS.embed(modality, torch.from_numpy(rows_BF)).numpy()
    return embeddings


def embeddings(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.array([each["embedding"] for each in response.json()["data"]])


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 20, 30)).save(file, "PNG")
    return file.getvalue()


def item(modality: str, raw: Raw) -> dict[str, object]:
    if isinstance(raw, str):
        return {"modality": modality, "text": raw}
    if isinstance(raw, bytes):
        return {"modality": modality, "data": base64.b64encode(raw).decode()}
    return {"modality": modality, "numbers": list(raw)}


def test_raw_items_are_embedded_and_an_encoder_that_differs_or_is_missing_is_named(
    application: Application,
) -> None:
    pictures, places = [picture(1), picture(2)], [(48.86, 2.35), (-33.87, 151.21)]
    np.testing.assert_allclose(
        embeddings(application.ask(TEXTS)), expected("text", TEXTS), atol=1e-5
    )
    mixed = [
        item("image", pictures[0]),
        item("place", places[0]),
        item("text", TEXTS[0]),
        item("image", pictures[1]),
        item("place", places[1]),
    ]
    found = embeddings(application.ask(mixed))
    np.testing.assert_allclose(found[[0, 3]], expected("image", pictures), atol=1e-5)
    np.testing.assert_allclose(found[[1, 4]], expected("place", places), atol=1e-5)
    np.testing.assert_allclose(found[[2]], expected("text", TEXTS[:1]), atol=1e-5)

    for wrong, reason in (
        (b"no image", "permitted are JPEG"),
        (pictures[0][:-25], "damaged"),
    ):
        refused = application.ask([item("image", pictures[0]), item("image", wrong)])
        assert refused.status_code == 400, refused.text
        assert "input[1]" in refused.json()["error"]["message"]
        assert reason in refused.json()["error"]["message"]
    assert {name: each["matches"] for name, each in application.encoders().items()} == {
        "text": True,
        "image": True,
        "place": True,
    }
    assert application.parts() == EndpointParts(
        encoders={encoder.name: "ok" for encoder in ENCODERS.values()}, replicas={"RUNNING": 1}
    )

    # The same width, and other features: their length is 1. No encoder for places.
    swapped = ENCODERS["image"].model_copy(update={"normalize": True})
    application.deploy({"text": ENCODERS["text"], "image": swapped})
    for given, code in (
        (item("image", pictures[0]), "encoder_mismatch"),
        (item("place", places[0]), "encoder_not_configured"),
    ):
        refused = application.ask([given])
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, code)
    refused = application.ask([item("image", pictures[0])])
    assert "normalize is True, expected False" in refused.json()["error"]["message"]
    assert embeddings(application.ask(TEXTS[:2])).shape == (2, 16)
    shown = application.encoders()
    assert (shown["image"]["matches"], shown["text"]["matches"]) == (False, True)
    # Features are always answered.
    feature = {"modality": "image", "feature": [0.5] * WIDTH}
    assert application.ask([feature]).status_code == 200
