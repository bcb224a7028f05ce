"""Limits of one owner, over all of its keys; other owners have their own."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import insert, select

from service.auth.ownership import MOST_KEYS, MOST_UPLOADS, MOST_WEBHOOKS
from service.database.tables import api_keys, uploads
from tests.fakes.control_plane import SPEC, ControlPlane
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    plane = ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY, models_per_owner=2)
    yield plane
    plane.close()


@pytest.fixture
def operator(plane: ControlPlane) -> KeyClient:
    return KeyClient(plane, ADMIN_KEY)


@pytest.fixture
def red(operator: KeyClient) -> KeyClient:
    return operator.client_with_key("one", owner="red")


@pytest.fixture
def blue(operator: KeyClient) -> KeyClient:
    return operator.client_with_key("one", owner="blue")


def _key(key_client: KeyClient) -> httpx.Response:
    return key_client.post("/v1/keys", json={"name": "more", "scopes": ["read", "admin", "embed"]})


def _fill_keys(plane: ControlPlane, number: int) -> None:
    """Insert keys of red, which has one."""
    with plane.context.database.write() as connection:
        query = select(api_keys).where(api_keys.c.owner == "red")
        row = connection.execute(query).mappings().one()
        more = [dict(row) | {"id": f"key-{each:012x}"} for each in range(number)]
        connection.execute(insert(api_keys), more)


def _model(key_client: KeyClient, name: str) -> httpx.Response:
    return key_client.post("/v1/models", json={"name": name, **SPEC})


def _refused(answer: httpx.Response, *words: str) -> None:
    assert answer.status_code == 409, answer.text
    assert answer.json()["errors"][0]["field"] == "owner"
    for word in words:
        assert word in answer.json()["detail"]


def test_an_owner_has_so_many_keys_whichever_of_them_makes_more(
    operator: KeyClient, red: KeyClient, blue: KeyClient
) -> None:
    _fill_keys(red.plane, MOST_KEYS - 2)
    last = KeyClient(red.plane, _key(red).json()["key"])
    for key_client in (red, last):
        _refused(_key(key_client), "owner 'red' has 100 keys", "permitted are 100. Remove some")
    assert _key(blue).status_code == 201
    assert operator.make_key("rescue", owner="red")["owner"] == "red"


def test_keys_that_are_made_and_revoked_in_turn_count_for_an_hour(red: KeyClient) -> None:
    _fill_keys(red.plane, MOST_KEYS - 2)
    made = _key(red).json()["id"]
    assert red.request("DELETE", f"/v1/keys/{made}").status_code == 204
    _refused(_key(red), "made within the last hour")
    red.plane.clock.advance(3601)
    assert _key(red).status_code == 201
    _refused(_key(red))


def test_the_same_request_again_is_answered_although_the_last_key_was_made(red: KeyClient) -> None:
    _fill_keys(red.plane, MOST_KEYS - 3)
    body = {"name": "more", "scopes": ["read"]}
    answers = [red.post("/v1/keys", json=body, headers={"Idempotency-Key": key}) for key in "aabb"]
    assert [answer.status_code for answer in answers] == [201] * 4
    _refused(_key(red))


def test_an_owner_has_so_many_models_and_others_have_theirs(
    operator: KeyClient, red: KeyClient, blue: KeyClient
) -> None:
    assert [_model(red, name).status_code for name in ("a", "b")] == [201] * 2
    _refused(_model(red, "c"), "owner 'red' has 2 models", "permitted are 2")
    assert _model(red, "b").status_code == 200
    assert _model(blue, "c").status_code == 201
    assert [_model(operator, name).status_code for name in ("x", "y", "z")] == [201] * 3
    assert red.request("DELETE", "/v1/models/a").status_code == 204
    _refused(_model(red, "d"))
    red.plane.clock.advance(3601)
    assert _model(red, "d").status_code == 201


def test_a_branch_counts_as_a_model(operator: KeyClient, tmp_path: Path) -> None:
    plane = operator.plane
    plane.client = operator.client_with_key(owner="red")
    plane.create_model()
    plane.run_to_end(plane.post_dataset())
    answers = [
        plane.client.post("/v1/models/scenes/branch", json={"name": name, "version": 1})
        for name in ("fork", "fork", "another")
    ]
    assert [answer.status_code for answer in answers] == [201, 201, 409]
    _refused(answers[-1], "owner 'red' has 2 models")


def test_an_owner_has_so_many_webhooks(red: KeyClient, blue: KeyClient) -> None:
    body = {"url": "https://example.com/hook"}
    answers = [red.post("/v1/webhooks", json=body) for _ in range(MOST_WEBHOOKS + 1)]
    assert [answer.status_code for answer in answers] == [201] * MOST_WEBHOOKS + [409]
    _refused(answers[-1], "owner 'red' has 50 webhooks")
    assert blue.post("/v1/webhooks", json=body).status_code == 201


def test_quotas_tell_what_an_owner_uses_and_may_use(operator: KeyClient, red: KeyClient) -> None:
    assert _model(red, "red-1").status_code == 201
    answer = red.get("/v1/quotas").json()
    assert answer["owner"] == "red"
    assert answer["quotas"] == {
        "running_jobs": {"used": 0, "limit": None},
        "models": {"used": 1, "limit": 2},
        "upload_bytes": {"used": 0, "limit": None},
    }
    assert operator.get("/v1/quotas?owner=red").json() == answer
    assert red.get("/v1/quotas?owner=blue").status_code == 404


def test_an_owner_has_so_many_uploads_until_they_are_removed(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    body = {"filename": "x.parquet", "bytes": 10}
    first = plane.client.post("/v1/uploads", json=body)
    with plane.context.database.write() as connection:
        row = connection.execute(select(uploads)).mappings().one()
        more = [dict(row) | {"id": f"up-{number:012x}"} for number in range(MOST_UPLOADS - 1)]
        connection.execute(insert(uploads), more)
    _refused(plane.client.post("/v1/uploads", json=body), "10000 uploads", "permitted are 10000")
    assert plane.client.request("DELETE", first.headers["Location"]).status_code == 204
    assert plane.client.post("/v1/uploads", json=body).status_code == 201
    plane.close()


def test_a_grant_replaces_the_limit_of_one_owner(tmp_path: Path) -> None:
    granted = {"red": {"models": 3}}
    plane = ControlPlane(
        tmp_path, auth="on", admin_key=ADMIN_KEY, models_per_owner=1, owners=granted
    )
    operator = KeyClient(plane, ADMIN_KEY)
    for owner, most in (("red", 3), ("blue", 1)):
        owners_key = operator.client_with_key(owner, owner=owner)
        made = [_model(owners_key, f"{owner}-{number}").status_code for number in range(4)]
        assert made == [201] * most + [409] * (4 - most)
    plane.close()
