"""An endpoint of prepared answers beside the sample data: a collection with thumbnails, and held-out rows that are searched."""

import base64
import random
from io import BytesIO

from PIL import Image

from cmcl.contract.api.endpoint import HeldOutHit, HeldOutList, HeldOutRanks
from cmcl.contract.version import PARTS
from service.page.endpoint import Endpoint
from tests.browser.sample import Names
from tests.fakes.control_plane import ControlPlane
from tests.fakes.endpoint import FakeEndpoint, collection, found
from tests.fakes.responses import body

_URL = "http://embeddings.internal:8001"
_CAPTIONS = ("a tram at dawn", "wet cobbles", "two bicycles", "a bakery's window", "a flooded lane")


def add_endpoint(plane: ControlPlane, names: Names) -> None:
    """Let the page of the control plane ask it."""
    reference = f"/v1/models/{names.model}"
    held_out = f"held-out/{names.dataset}"
    ids = [f"street-{index:04}" for index in range(len(_CAPTIONS))]
    rows = [
        {"row": index, "id": name, "label": caption}
        for index, (name, caption) in enumerate(zip(ids, _CAPTIONS, strict=True))
    ]
    hits = {
        version: {
            **found(f"{names.model}@{version}", *order, rows=len(rows)),
            "partner": {"rank": order.index(ids[0]) + 1, "score": 0.9 - order.index(ids[0]) / 100},
        }
        for version, order in ((6, [ids[1], *ids[:1], *ids[2:]]), (7, ids))
    }
    firsts = [body(HeldOutHit, **row, modality="text", score=0.8) for row in rows]
    items = [
        {
            "id": name,
            "modality": "image",
            "payload": {"caption": caption, "picture": thumbnail(index)},
        }
        for index, (name, caption) in enumerate(zip(ids, _CAPTIONS, strict=True))
    ]
    listed = collection(names.collection, names.model, searched=_SEARCHED)
    page = {"object": "list", "data": items, "model": f"{names.model}@7", "revision": 7}
    listing = body(HeldOutList, pair=["image", "text"], rows=5, rows_stored=5)
    path = f"/v1/collections/{names.collection}"
    fake = FakeEndpoint(
        {
            f"GET {PARTS}": {"encoders": {}, "replicas": {"RUNNING": 2}},
            "GET /v1/collections": {"object": "list", "data": [listed], "damaged": []},
            f"GET {path}": listed,
            f"GET {path}/items": {**page, "rows": len(items), "next_offset": None},
            **{
                f"GET {each}/{held_out}": {**listing, "data": rows, "next_offset": None}
                for each in (reference, f"{reference}@6", f"{reference}@7")
            },
            **{
                f"POST {reference}@{version}/{held_out}/search": answer
                for version, answer in hits.items()
            },
            **{
                f"POST {reference}@{version}/{held_out}/ranks": body(
                    HeldOutRanks,
                    data=[
                        {**row, "rank": 1 + (version == 2) * index, "first": firsts[index]}
                        for index, row in enumerate(rows)
                    ],
                    modality="image",
                    rows=5,
                )
                for version in (2, 6, 7)
            },
        }
    )
    plane.app.state.endpoint = Endpoint(_URL, None, fake.transport)


_SEARCHED = {
    "version": 7,
    "revision": 7,
    "rows": {"image": 5, "text": 0},
    "problem": None,
    "progress": 0.4,
}


def thumbnail(number: int) -> str:
    """A picture as a payload holds it; another one for each number."""
    return f"data:image/png;base64,{base64.b64encode(thumbnail_bytes(number)).decode('ascii')}"


def thumbnail_bytes(number: int) -> bytes:
    """A PNG of some coloured stripes."""
    drawn = random.Random(number)
    picture = Image.new("RGB", (48, 32))
    for left in range(0, 48, 8):
        colour = tuple(drawn.randrange(40, 230) for _ in range(3))
        picture.paste(colour, (left, 0, left + 8, 32))
    stored = BytesIO()
    picture.save(stored, "PNG", optimize=True)
    return stored.getvalue()
