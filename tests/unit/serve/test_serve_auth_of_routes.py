"""Every route of a replica needs a valid key, except those named here."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from cmcl.contract.api.access import SNAPSHOT_TYPE, KeySnapshot, SnapshotKey
from cmcl.contract.version import ANNOUNCEMENTS, PARTS
from cmcl.storage import layout
from service.auth.keys import KeyText, mint
from service.auth.signing import make_pair, sign
from service.core.setting_values import read_signing_key
from tests.fakes.app_client import AppClient
from tests.unit.serve.conftest import MODEL, Replica
from workers.serve.api.app import create_api, describe
from workers.serve.api.context import Replica as Parts
from workers.serve.auth import SignedKeys, read_public_keys

PAIR = make_pair()
# Probes, the description, and what the control plane calls: a poll of the store, and a call to each encoder.
OPEN = {"/healthz", "/readyz", "/openapi.json", ANNOUNCEMENTS, PARTS}
LAB, SHOP, OPERATOR = mint(), mint(), mint()
QUERY = json.dumps({"model": MODEL, "modality": "image", "input": [1, 2, 3, 4, 5]})


def guarded(replica: Replica) -> Parts:
    """The replica's parts, with keys of two owners, or of the operator, required."""
    owners = {LAB: "lab", SHOP: "shop", OPERATOR: None}
    listed = tuple(
        SnapshotKey(id=key.id, name=owner or "operator", sha256=key.digest, owner=owner)
        for key, owner in owners.items()
    )
    snapshot = KeySnapshot(serial=1, issued_at=datetime(2026, 11, 25, tzinfo=UTC), keys=listed)
    token = sign(snapshot, SNAPSHOT_TYPE, read_signing_key(PAIR.private))
    replica.store.put(layout.key_snapshot(), token.encode())
    keys = SignedKeys(read_public_keys(PAIR.public))
    keys.refresh(replica.store)
    return replace(replica.parts(replica.args), access=keys)


def routes(parts: Parts) -> Iterator[tuple[str, str]]:
    """All routes of the description, and those that are not in it."""
    app = describe(parts)
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            yield method.upper(), path.replace("{", "").replace("}", "")
    for route in app.routes:
        if (path := getattr(route, "path", None)) is not None:
            yield "POST" if path.startswith("/v1/") else "GET", path


def bearer(key: KeyText) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.text}"}


@pytest.mark.parametrize(
    "headers",
    [
        [],
        list(bearer(mint()).items()),
        [("Authorization", f"Basic {LAB.text}")],
        [*bearer(LAB).items(), *bearer(mint()).items()],
        [*bearer(LAB).items(), *bearer(LAB).items()],
    ],
    ids=["none", "unknown", "of another scheme", "two headers", "the same header twice"],
)
def test_no_route_answers_without_one_valid_key(
    serving: Replica, headers: list[tuple[str, str]]
) -> None:
    parts = guarded(serving)
    client = AppClient(create_api(parts))
    asked = [(method, path) for method, path in routes(parts) if path not in OPEN]
    assert {("POST", "/v1/embeddings"), ("GET", "/v1/models")} <= set(asked)
    answers = {each: client.request(*each, headers=headers, content=QUERY) for each in asked}
    assert {each: answer.status_code for each, answer in answers.items()} == dict.fromkeys(
        asked, 401
    )
    for answer in answers.values():
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_model_exists_for_its_owner_alone(serving: Replica) -> None:
    serving.point(generation=2, version=1, owner="lab")
    serving.poll()
    client = AppClient(create_api(guarded(serving)))
    for key, status, models in ((LAB, 200, [MODEL]), (SHOP, 404, [])):
        headers = bearer(key)
        assert client.post("/v1/embeddings", content=QUERY, headers=headers).status_code == status
        listed = client.get("/v1/models", headers=headers).json()["data"]
        assert [each["id"] for each in listed] == models
