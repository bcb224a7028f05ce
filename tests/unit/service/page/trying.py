"""A control plane with an endpoint of prepared answers."""

from pathlib import Path
from typing import Any

from cmcl.contract.api.endpoint import HeldOutList
from service.page.endpoint import Endpoint
from tests.fakes.control_plane import ControlPlane
from tests.fakes.endpoint import FakeEndpoint
from tests.fakes.responses import body

URL = "http://embeddings.internal:8001"
ROWS = body(
    HeldOutList,
    pair=["image", "text"],
    rows=2,
    rows_stored=2,
    data=[{"row": 0, "id": "a", "label": "cat"}, {"row": 1, "id": "b", "label": None}],
)
ENCODERS = (
    {"name": "words", "kind": "synthetic", "takes": "text", "width": 3},
    {"name": "eyes", "kind": "synthetic", "takes": "image", "width": 4},
)
MODALITIES = {"image": {"encoder": "eyes"}, "text": {"encoder": "words"}, "place": 2}


def open_plane(folder: Path, fake: FakeEndpoint, **settings: Any) -> ControlPlane:
    """A control plane with that endpoint, and a model with two versions."""
    plane = ControlPlane(folder, encoders=ENCODERS, embeddings_url=URL, **settings)
    plane.app.state.endpoint = Endpoint(URL, None, fake.transport)
    return plane


def make_model(plane: ControlPlane, name: str = "scenes") -> None:
    plane.create_model(name, modalities=MODALITIES)
    for dataset in ("one", "two"):
        plane.run_to_end(plane.post_dataset(dataset, name))
