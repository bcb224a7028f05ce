"""The page asks a real replica, which verifies the tokens of its sessions: both sides use the same format."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from cmcl.contract.access import KeySnapshot
from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.modality import ModalityPair
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from service.auth.key_snapshot import make_pair, sign
from service.auth.sessions import SessionTokens
from service.core.setting_values import read_signing_key
from service.page.endpoint import Endpoint
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import feature_table, write_shard
from tests.fakes.flaky_store import FlakyStore
from tests.unit.serve.collections.conftest import NamedCallers, Searching
from tests.unit.serve.collections.conftest import opened as opened_replica
from tests.unit.serve.conftest import MODEL
from tests.unit.service.auth.key_client import ADMIN_KEY, EVERY_SCOPE, KeyClient
from tests.unit.service.page.browser import Browser
from workers.files.shards import describe_shard
from workers.serve.auth import SignedKeys, read_public_keys

PAIR = make_pair()
DATASET = f"{MODEL}-data-1"
# As the replica's.
MODALITIES = {"image": 5, "text": {"encoder": "letters"}}
LETTERS = {"name": "letters", "kind": "synthetic", "takes": "text", "width": 4}


@dataclass(frozen=True)
class Stack:
    """A control plane and a replica, with keys."""

    plane: ControlPlane
    replica: Searching
    operator: KeyClient

    def person(self, owner: str) -> Browser:
        """A browser with all scopes of that owner."""
        browser = Browser(self.plane)
        browser.sign_in(self.operator.make_key("ann", EVERY_SCOPE, owner=owner)["key"])
        return browser


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    store = FlakyStore(LocalStore(folder / "endpoint"))
    plane = ControlPlane(
        folder / "service", auth="on", admin_key=ADMIN_KEY, encoders=[LETTERS], lease_seconds=1
    )
    operator = KeyClient(plane, ADMIN_KEY)
    plane.client = operator.client_with_key("maker", owner="lab")
    plane.create_model(MODEL, width=6, modalities=MODALITIES)
    shard = plane.shard("pairs", feature_table(16, widths=(5, 4)))
    plane.run_to_end(plane.post_dataset("one", MODEL, shards=[shard]))
    with opened_replica(store) as replica:
        prepare(replica, folder)
        signing_key = read_signing_key(PAIR.private)
        snapshot = KeySnapshot(serial=1, issued_at=datetime.now(UTC), keys=())
        store.put(layout.key_snapshot(), sign(snapshot, signing_key))
        access = SignedKeys(read_public_keys(PAIR.public), clock=lambda: plane.clock().timestamp())
        access.refresh(store)
        replica.access = access
        app = replica.app_of(replica.args)
        plane.app.state.endpoint = Endpoint(
            "http://127.0.0.1", SessionTokens(signing_key, plane.clock), httpx.ASGITransport(app)
        )
        yield Stack(plane, replica, operator)
    plane.close()


def prepare(replica: Searching, folder: Path) -> None:
    """Held-out rows, and items of the owner `lab`."""
    path = folder / "evaluation.parquet"
    shard = describe_shard(path, write_shard(path, feature_table(9, widths=(5, 4))).uri)
    manifest = DatasetManifest(
        dataset=DATASET,
        model=MODEL,
        name="one",
        pair=ModalityPair(first="image", second="text"),
        shards=(shard,),
        evaluation_shards=(shard,),
    )
    replica.store.put(layout.dataset_manifest(DATASET), manifest.model_dump_json().encode())
    replica.point(generation=2, version=1, owner="lab")
    replica.poll()
    items = [
        {"id": word, "modality": "text", "text": word, "payload": {"word": word}}
        for word in ("aaa", "eee", "iii")
    ]
    replica.access = NamedCallers()
    replica.app = replica.app_of(replica.args)
    headers = {"authorization": "lab"}
    created = replica.ask("PUT", "/words", {"model": MODEL}, headers)
    assert created.status_code == 200, created.text
    added = replica.ask("POST", "/words/items", {"items": items}, headers)
    assert added.status_code == 200, added.text
    waits = {**headers, "x-min-collection-revision": str(added.json()["revision"])}
    query = {"query": {"modality": "text", "text": "aaa"}}
    assert replica.ask("POST", "/words/search", query, waits).status_code == 200


def test_a_text_finds_items_of_a_collection(stack: Stack) -> None:
    person = stack.person("lab")
    page = person.get(f"/ui/try?model={MODEL}&modality=text&text=eee&where=collection:words")
    assert page.status_code == 200
    assert f"{MODEL}@1" in page.text
    assert page.text.index(">eee<") < page.text.index(">aaa<")
    assert "1.000" in page.text


def test_held_out_rows_are_picked_and_found(stack: Stack) -> None:
    person = stack.person("lab")
    page = person.get(f"/ui/try?model={MODEL}&where=dataset:{DATASET}")
    assert "row-8" in page.text
    address = f"/ui/try?model={MODEL}&where=dataset:{DATASET}&row=3&modality=image"
    page = person.get(f"{address}&version=1&other=1")
    assert "its partner" in page.text
    assert "<strong>9 of the ten best</strong>" in page.text
    assert "of 9 rows" in page.text


def test_collections_are_browsed(stack: Stack) -> None:
    person = stack.person("lab")
    assert "words" in person.get("/ui/collections").text
    page = person.get("/ui/collections/words").text
    for word in ("aaa", "eee", "iii"):
        assert f">{word}<" in page


def test_another_owner_finds_nothing_of_it(stack: Stack) -> None:
    stranger = stack.person("elsewhere")
    assert "words" not in stranger.get("/ui/collections").text
    assert stranger.get("/ui/collections/words").status_code == 404
    assert stranger.get(f"/ui/try?model={MODEL}").status_code == 404


def test_a_mistake_is_explained_by_the_endpoint(stack: Stack) -> None:
    person = stack.person("lab")
    search = f"model={MODEL}&where=dataset:{DATASET}"
    page = person.get(f"/ui/try?{search}&modality=image&numbers=1,2")
    assert page.status_code == 200
    results = page.text.partition('id="live_results"')[2].partition("</section>")[0]
    assert "5" in results
    assert "query[0]" not in results.lower(), "no field of the API"
    page = person.get(f"/ui/try?{search}&modality=image&row=100")
    assert "permitted are 0 to 8" in page.text.lower()
