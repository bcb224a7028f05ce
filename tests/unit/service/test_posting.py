"""Requests that change something: posting, idempotency, revisions that were seen, and what is refused."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from cmcl.contract.api.jobs import JobState
from tests.fakes.control_plane import SPEC, ControlPlane
from tests.fakes.served_app import served
from tests.fakes.trainer import train


def test_a_dataset_is_accepted_with_its_job(plane: ControlPlane) -> None:
    response = plane.client.post("/v1/datasets", json=plane.dataset_body("one"))
    assert response.status_code == 202
    body = response.json()
    assert response.headers["location"] == f"/v1/jobs/{body['job']['id']}"
    assert (body["job"]["state"], body["job"]["attempt"]) == ("queued", 0)
    assert body["job"]["dataset"] == body["dataset"]["id"]
    assert plane.client.get(response.headers["location"]).json() == body["job"]


def test_the_same_dataset_again_is_the_same_job(plane: ControlPlane) -> None:
    body = plane.dataset_body("one")
    first = plane.client.post("/v1/datasets", json=body)
    again = plane.client.post("/v1/datasets", json={**body, "name": "other-name"})
    assert (again.status_code, again.json()) == (200, first.json())
    assert len(plane.client.get("/v1/jobs").json()["items"]) == 1


@pytest.mark.parametrize("route", ["/v1/models", "/v1/datasets", "cancel"])
def test_a_key_repeats_its_answer(plane: ControlPlane, route: str) -> None:
    body: dict[str, object] | None = {"name": "new", **SPEC}
    if route == "/v1/datasets":
        body = plane.dataset_body("one")
    if route == "cancel":
        route, body = f"/v1/jobs/{plane.post_dataset()}/cancel", None
    headers = {"Idempotency-Key": "key-1"}
    first = plane.client.post(route, json=body, headers=headers)
    again = plane.client.post(route, json=body, headers=headers)
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert again.headers["location"] == first.headers["location"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"


def test_a_key_is_good_for_one_body(plane: ControlPlane) -> None:
    headers = {"Idempotency-Key": "key-1"}
    plane.client.post("/v1/datasets", json=plane.dataset_body("one"), headers=headers)
    body = plane.dataset_body("two")
    response = plane.client.post("/v1/datasets", json=body, headers=headers)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "Idempotency-Key"
    assert len(plane.client.get("/v1/jobs").json()["items"]) == 1


def test_a_key_of_a_refused_request_can_be_used_again(plane: ControlPlane) -> None:
    headers = {"Idempotency-Key": "key-1"}
    body = plane.dataset_body("one", model="sounds")
    assert plane.client.post("/v1/datasets", json=body, headers=headers).status_code == 404
    plane.create_model("sounds")
    assert plane.client.post("/v1/datasets", json=body, headers=headers).status_code == 202


def test_a_key_counts_per_address(plane: ControlPlane) -> None:
    headers = {"Idempotency-Key": "key-1"}
    one, two = plane.post_dataset("one"), plane.post_dataset("two")
    for job in (one, two):
        response = plane.client.post(f"/v1/jobs/{job}/cancel", headers=headers)
        assert response.json()["id"] == job


_HALF = '"\\ud800"'


@pytest.mark.parametrize(
    "encoders", ['{"image": {"kind": %s}}', "{%s: {}}", '{"image": {"settings": {"a": [%s]}}}']
)
def test_half_of_a_surrogate_pair_is_refused(plane: ControlPlane, encoders: str) -> None:
    """JSON has it and UTF-8 does not: no record and no request for a preparation could be written."""
    body = json.dumps(plane.dataset_body("one"))[:-1] + f', "encoders": {encoders % _HALF}}}'
    headers = {"Content-Type": "application/json"}
    response = plane.client.post("/v1/datasets", content=body, headers=headers)
    assert response.status_code == 422
    assert "surrogate" in response.json()["errors"][0]["message"]
    assert plane.client.get("/v1/jobs").json()["items"] == []


def _open(plane: ControlPlane, **changes: Any) -> str:
    body = plane.dataset_body("one", shards=[], sealed=False, **changes)
    answer = plane.client.post("/v1/datasets", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.json()["job"] is None
    dataset: str = answer.json()["dataset"]["id"]
    assert answer.headers["Location"] == f"/v1/datasets/{dataset}"
    return dataset


def _add(plane: ControlPlane, dataset: str, **body: Any) -> int:
    return plane.client.post(f"/v1/datasets/{dataset}/shards", json=body).status_code


def test_shards_are_added_until_it_is_sealed(plane: ControlPlane) -> None:
    dataset = _open(plane)
    assert _add(plane, dataset, shards=[plane.shard("a")]) == 200
    assert _add(plane, dataset, shards=[plane.shard("b")]) == 200
    plane.tick(5)
    sealed = plane.client.post(f"/v1/datasets/{dataset}/seal")
    assert sealed.status_code == 202
    job = sealed.json()["job"]["id"]
    assert _add(plane, dataset, shards=[plane.shard("c")]) == 409
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    assert plane.versions()[0].manifest.learned[0].rows == 32


def test_sealing_twice_is_one_job(plane: ControlPlane) -> None:
    dataset = _open(plane)
    _add(plane, dataset, shards=[plane.shard("a")])
    first, second = (plane.client.post(f"/v1/datasets/{dataset}/seal") for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json()["job"]["id"] == second.json()["job"]["id"]


def test_an_empty_dataset_cannot_be_sealed(plane: ControlPlane) -> None:
    answer = plane.client.post(f"/v1/datasets/{_open(plane)}/seal")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "shards"


@pytest.mark.parametrize("body", [{}, {"shards": []}])
def test_adding_nothing_is_an_error(plane: ControlPlane, body: dict[str, object]) -> None:
    assert _add(plane, _open(plane), **body) == 422


def test_a_shard_is_not_added_twice(plane: ControlPlane) -> None:
    dataset = _open(plane)
    assert _add(plane, dataset, shards=[plane.shard("a")]) == 200
    assert _add(plane, dataset, evaluation_shards=[plane.shard("a")]) == 422


def test_too_many_shards_are_refused_while_they_are_added(plane: ControlPlane) -> None:
    dataset = _open(plane)
    prefix = plane.shards.resolve().as_uri()
    many = [{"uri": f"{prefix}/{number}"} for number in range(10_000)]
    assert _add(plane, dataset, shards=many) == 200
    assert _add(plane, dataset, shards=[plane.shard("more")]) == 422


def test_a_sealed_twin_is_pointed_out(plane: ControlPlane) -> None:
    plane.client.post("/v1/datasets", json=plane.dataset_body("one", shards=[plane.shard("a")]))
    dataset = _open(plane)
    _add(plane, dataset, shards=[plane.shard("a")])
    answer = plane.client.post(f"/v1/datasets/{dataset}/seal")
    assert answer.status_code == 409
    assert "delete this one" in answer.json()["detail"]


def test_an_open_dataset_can_be_deleted(plane: ControlPlane) -> None:
    dataset = _open(plane)
    path = f"/v1/datasets/{dataset}"
    assert plane.client.request("DELETE", path).status_code == 204
    assert plane.client.get(path).status_code == 404
    assert plane.client.get("/v1/datasets").json()["items"] == []


def test_what_is_learned_or_being_learned_cannot_be_deleted(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    path = f"/v1/datasets/{plane.job(job).dataset}"
    assert plane.client.request("DELETE", path).status_code == 409
    plane.run_to_end(job)
    answer = plane.client.request("DELETE", path)
    assert answer.status_code == 409
    assert "version 1" in answer.json()["detail"]


def test_a_dataset_of_a_deleted_model_cannot_be_sealed(plane: ControlPlane) -> None:
    dataset = _open(plane)
    _add(plane, dataset, shards=[plane.shard("a")])
    assert plane.client.request("DELETE", "/v1/models/scenes").status_code == 204
    assert plane.client.post(f"/v1/datasets/{dataset}/seal").status_code == 404
    assert plane.client.get("/v1/jobs").json()["items"] == []


def _act(plane: ControlPlane, path: str, seen: int, method: str = "POST") -> httpx.Response:
    return plane.client.request(method, path, headers={"If-Match": f'"{seen}"'})


def _held(plane: ControlPlane) -> str:
    plane.client.put("/v1/models/scenes/gate", json={"manual_approval": True})
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    train(plane.store, job, 1)
    plane.tick_to(job, JobState.HELD)
    return job


def _revision(plane: ControlPlane, job: str) -> int:
    revision: int = plane.client.get(f"/v1/jobs/{job}").json()["revision"]
    return revision


def test_a_decision_is_about_the_job_that_was_seen(plane: ControlPlane) -> None:
    job = _held(plane)
    seen = _revision(plane, job)
    assert _act(plane, f"/v1/jobs/{job}/reject", seen).status_code == 202
    answer = _act(plane, f"/v1/jobs/{job}/approve", seen)
    assert answer.status_code == 412
    assert f"job {job} is rejected and has revision {seen + 1}, not {seen}" in answer.text
    assert plane.job(job).state == JobState.REJECTED
    assert _act(plane, f"/v1/jobs/{job}/retry", seen).status_code == 412
    assert _act(plane, f"/v1/jobs/{job}/retry", seen + 1).status_code == 202


def test_progress_does_not_change_what_was_seen(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    seen = _revision(plane, job)
    train(plane.store, job, 1, write=False)
    plane.tick(2)
    assert _act(plane, f"/v1/jobs/{job}/cancel", seen).status_code == 202
    assert _revision(plane, job) == seen + 1


def test_a_dataset_is_sealed_with_the_files_that_were_seen(plane: ControlPlane) -> None:
    body = plane.dataset_body("one", sealed=False)
    made = plane.client.post("/v1/datasets", json=body).json()["dataset"]
    assert made["files"] == 1
    added = {"evaluation_shards": [plane.shard("late")]}
    plane.client.post(f"/v1/datasets/{made['id']}/shards", json=added)
    assert _act(plane, f"/v1/datasets/{made['id']}/seal", 1).status_code == 412
    assert plane.client.get(f"/v1/datasets/{made['id']}").json()["sealed_at"] is None
    assert _act(plane, f"/v1/datasets/{made['id']}/seal", 2).status_code == 202


def test_a_version_is_retired_beside_the_live_one_that_was_seen(plane: ControlPlane) -> None:
    for name in ("one", "two", "three"):
        plane.run_to_end(plane.post_dataset(name))
    path = "/v1/models/scenes/versions/1"
    assert _act(plane, path, 2, "DELETE").status_code == 412
    assert plane.versions()[0].retired_at is None
    assert _act(plane, path, 3, "DELETE").status_code == 204


def _assert_problem(response: httpx.Response, status: int) -> dict[str, str]:
    """A problem document; field and message by field."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["type"].startswith("urn:cmcl:problem:")
    assert body["instance"] == response.request.url.path
    return {error["field"]: error["message"] for error in body["errors"]}


def _assert_no_trace(plane: ControlPlane) -> None:
    assert plane.client.get("/v1/datasets").json()["items"] == []
    assert plane.client.get("/v1/jobs").json()["items"] == []


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/collections/x"])
def test_routes_of_the_endpoint_are_named_in_the_404(plane: ControlPlane, path: str) -> None:
    response = plane.client.post(path, json={})
    _assert_problem(response, 404)
    assert "this is the control plane" in response.json()["detail"]
    assert "CMCL_EMBEDDINGS_URL" in response.json()["detail"]


def test_every_answer_names_the_server(plane: ControlPlane) -> None:
    paths = ("/v1/models", "/v1/models/none", "/nowhere", "/healthz")
    answers = [plane.client.get(path) for path in paths]
    assert {answer.headers["x-cmcl-server"] for answer in answers} == {"control-plane"}


_LOOK_ALIKES = ["sc\u0435nes", "scenes\u200b", "\uff53cenes", "scenes\u0301"]
_ODD_NAMES = ["Scenes", "a b", "../up", "", "-a", "a-", "x" * 49, "ä", "a\0b", "a/b", "%2e%2e"]


@pytest.mark.parametrize("name", [*_ODD_NAMES, *_LOOK_ALIKES])
def test_a_model_name_with_odd_characters_is_refused(plane: ControlPlane, name: str) -> None:
    errors = _assert_problem(plane.client.post("/v1/models", json={**SPEC, "name": name}), 422)
    assert "lower-case letters, digits and inner hyphens" in errors["name"]


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("modalities", {"modalities": {"image": 4}}),
        ("modalities.image.width", {"modalities": {"image": 0, "text": 3}}),
        ("modalities['Big Image']['[key]']", {"modalities": {"Big Image": 4, "text": 3}}),
        ("width", {"width": "wide"}),
        ("width", {"width": 1}),
        ("method", {"method": "magic"}),
        ("training.batch_size", {"training": {"batch_size": 1}}),
        ("kept_energy", {"kept_energy": 1.5}),
        ("colour", {"colour": "blue"}),
        ("modalities", {"width": 8192, "modalities": {"a": 16384, "b": 16384, "c": 16384, "d": 16384, "e": 16384, "f": 16384, "g": 16384, "h": 16384, "i": 16384}}),
    ],
)  # fmt: skip
def test_a_bad_model_names_its_field(
    plane: ControlPlane, field: str, changes: dict[str, object]
) -> None:
    body = {**SPEC, "name": "new", **changes}
    assert field in _assert_problem(plane.client.post("/v1/models", json=body), 422)


def test_a_model_cannot_change_its_specification(plane: ControlPlane) -> None:
    body = {**SPEC, "name": "scenes", "width": 16}
    errors = _assert_problem(plane.client.post("/v1/models", json=body), 409)
    assert errors == {"width": "it is 8"}


@pytest.mark.parametrize(
    ("field", "words", "changes"),
    [
        ("pair", "two different", {"pair": {"first": "image", "second": "image"}}),
        ("pair.second", "permitted: audio, image, text", {"pair": {"first": "image", "second": "smell"}}),
        ("pair.first", "lower-case letter", {"pair": {"first": "Image", "second": "text"}}),
        ("name", "lower-case letters", {"name": "One!"}),
        ("shards", "at least 1", {"shards": []}),
        ("shards[0].uri", "outside the allowed prefixes", {"shards": [{"uri": "file:///etc/passwd"}]}),
        ("shards[0].uri", "to allow it: `cmcl up --allow`", {"shards": [{"uri": "file:///etc/passwd"}]}),
        ("shards[0].uri", "schemes", {"shards": [{"uri": "https://elsewhere/x"}]}),
        ("shards[0].uri", "not an address", {"shards": [{"uri": "s3://[/x"}]}),
        ("shards[0].sha256", "64 lower-case hexadecimal", {"shards": [{"uri": "s3://b/x", "sha256": "abc"}]}),
        ("shards[0].size", "no such field", {"shards": [{"uri": "s3://b/x", "size": 3}]}),
        ("evaluation_shards[0].uri", "outside", {"evaluation_shards": [{"uri": "file:///x/y"}]}),
        ("rows", "no such field", {"rows": 12}),
    ],
)  # fmt: skip
def test_a_bad_dataset_names_its_field(
    plane: ControlPlane, field: str, words: str, changes: dict[str, object]
) -> None:
    body = {**plane.dataset_body("one"), **changes}
    errors = _assert_problem(plane.client.post("/v1/datasets", json=body), 422)
    assert words in errors[field]
    _assert_no_trace(plane)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("jobs/nope", "the id of a job, job- and 12 hexadecimal digits; GET /v1/jobs has them"),
        ("uploads/nope", "the id of an upload, up- and 12 hexadecimal digits"),
        ("datasets/fashion", "the id of a dataset, ds- and 12 hexadecimal digits"),
        ("keys/robot", "the id of a key"),
        ("webhooks/x", "the id of a webhook"),
    ],
)
def test_a_malformed_id_is_rejected_with_the_expected_form(
    plane: ControlPlane, path: str, words: str
) -> None:
    (problem,) = _assert_problem(plane.client.get(f"/v1/{path}"), 422).values()
    assert words in problem


@pytest.mark.parametrize(
    ("scopes", "field", "words"),
    [
        (
            ["read", "foo"],
            "scopes[1]",
            "scope 'foo' is unknown; permitted: read, write, train, admin, embed",
        ),
        ([], "scopes", "a key needs a scope; permitted: read, write, train, admin, embed"),
    ],
)
def test_a_scope_that_is_unknown_is_named(
    plane: ControlPlane, scopes: list[str], field: str, words: str
) -> None:
    body = {"name": "robot", "scopes": scopes}
    assert _assert_problem(plane.client.post("/v1/keys", json=body), 422) == {field: words}


@pytest.mark.parametrize("climb", ["..", "%2e%2e", "a%00b", "%5C"])
def test_an_address_cannot_climb_out(plane: ControlPlane, climb: str) -> None:
    uri = f"{plane.shards.as_uri()}/{climb}/secret.parquet"
    body = plane.dataset_body("one", shards=[{"uri": uri}])
    assert "shards[0].uri" in _assert_problem(plane.client.post("/v1/datasets", json=body), 422)


def test_an_address_named_twice_is_refused(plane: ControlPlane) -> None:
    shard = plane.shard("same")
    body = plane.dataset_body("one", shards=[shard], evaluation_shards=[shard])
    errors = _assert_problem(plane.client.post("/v1/datasets", json=body), 422)
    assert "named twice" in errors["evaluation_shards[0].uri"]


@pytest.mark.parametrize("route", ["/v1/models", "/v1/datasets"])
@pytest.mark.parametrize("body", [b"{", b"", b"\xff\xfe", b"[" * 10_000, b"nope"])
def test_a_body_that_is_no_json_is_refused(plane: ControlPlane, route: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    response = plane.client.post(route, content=body, headers=headers)
    _assert_problem(response, 400 if body else 422)


@pytest.mark.parametrize("text", ['{"name": NaN}', '{"name": "\\ud800"}', '{"\\ud800": 1e999}'])
def test_odd_values_are_quoted_without_harm(plane: ControlPlane, text: str) -> None:
    headers = {"Content-Type": "application/json"}
    _assert_problem(plane.client.post("/v1/models", content=text, headers=headers), 422)


@pytest.mark.parametrize(
    "declared",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "application/json-patch+json",
    ],
)
def test_a_body_must_say_that_it_is_json(plane: ControlPlane, declared: str | None) -> None:
    headers = {"Content-Type": declared} if declared else {}
    body = json.dumps({"name": "new", **SPEC}).encode()
    _assert_problem(plane.client.post("/v1/models", content=body, headers=headers), 415)


def test_json_with_a_charset_is_json(plane: ControlPlane) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    body = json.dumps({"name": "new", **SPEC}).encode()
    assert plane.client.post("/v1/models", content=body, headers=headers).status_code == 201


@pytest.mark.parametrize("route", ["/v1/models", "/v1/datasets", "/v1/jobs/job-0123456789ab/retry"])
def test_a_body_that_is_too_large_is_refused(plane: ControlPlane, route: str) -> None:
    headers = {"Content-Type": "application/json"}
    response = plane.client.post(route, content=b" " * (1024 * 1024 + 1), headers=headers)
    _assert_problem(response, 413)


class _Endless(httpx.AsyncByteStream):
    """An endless body without a length."""

    def __init__(self) -> None:
        self.chunks = 0

    async def __aiter__(self):  # type: ignore[no-untyped-def]
        while True:
            self.chunks += 1
            yield b" " * 65536


def test_a_body_without_a_length_is_cut_off(plane: ControlPlane) -> None:
    body = _Endless()
    headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    response = plane.client.post("/v1/models", content=body, headers=headers)
    _assert_problem(response, 413)
    assert body.chunks < 20


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/models/Scenes", "model"),
        ("/v1/models/scenes/versions/0", "version"),
        ("/v1/models/scenes/versions/99999999999999999999", "version"),
        ("/v1/models/scenes/versions/one", "version"),
        ("/v1/datasets/1", "dataset"),
        ("/v1/jobs/job-%00", "job"),
        ("/v1/jobs?state=sleeping", "state"),
        ("/v1/jobs?model=A", "model"),
        ("/v1/jobs?model='%20OR%201=1;--", "model"),
        ("/v1/jobs?state=queued'%20OR%20'1'='1", "state"),
        ("/v1/models/sc%D0%B5nes", "model"),
        ("/v1/jobs?limit=0", "limit"),
        ("/v1/jobs?limit=201", "limit"),
        ("/v1/jobs?cursor=nonsense", "cursor"),
        ("/v1/jobs?cursor=-1", "cursor"),
        ("/v1/jobs?cursor=OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5", "cursor"),
        ("/v1/jobs?cursor=" + "MDAw" * 20 + "OTk5" * 20, "cursor"),
        ("/v1/jobs?cursor=" + "MDAw" * 2000, "cursor"),
        # asc:4294967296, asc:-1, up:1
        ("/v1/jobs?cursor=YXNjOjQyOTQ5NjcyOTY", "cursor"),
        ("/v1/jobs?cursor=YXNjOi0x", "cursor"),
        ("/v1/jobs?cursor=dXA6MQ", "cursor"),
        ("/v1/jobs?order=newest", "order"),
        ("/v1/models?cursor=%C3%A4", "cursor"),
    ],
)
def test_a_bad_address_names_its_part(plane: ControlPlane, path: str, field: str) -> None:
    assert field in _assert_problem(plane.client.get(path), 422)


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "ä"])
def test_a_bad_idempotency_key_is_refused(plane: ControlPlane, key: str) -> None:
    headers = {b"Idempotency-Key": key.encode()}
    response = plane.client.post("/v1/models", json={"name": "new", **SPEC}, headers=headers)
    assert "Idempotency-Key" in _assert_problem(response, 422)


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane whose operator has permitted no prefix."""
    plane = ControlPlane(tmp_path, allowed_prefixes=())
    plane.create_model()
    yield plane
    plane.close()


def test_without_prefixes_no_dataset_is_accepted(closed: ControlPlane) -> None:
    response = closed.client.post("/v1/datasets", json=closed.dataset_body("one"))
    errors = _assert_problem(response, 422)
    assert "none are configured" in errors["shards[0].uri"]


@pytest.mark.parametrize("depth", [1_000, 8_000])
def test_json_of_great_depth_is_refused(plane: ControlPlane, depth: int) -> None:
    text = '{"name": "new", "modalities": ' + "[" * depth + "]" * depth + "}"
    headers = {"Content-Type": "application/json"}
    response = plane.client.post("/v1/models", content=text, headers=headers)
    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"


def test_a_request_that_was_cut_off_is_not_done(plane: ControlPlane) -> None:
    job = plane.post_dataset("one")
    path, key = f"/v1/jobs/{job}/cancel", {"Idempotency-Key": "once"}
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: once\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 20\r\n\r\n"
    with served(plane.app) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(head.encode())
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert plane.job(job).state == JobState.QUEUED
    # Its key is free: a client that was cut off sends the whole body again.
    assert plane.client.post(path, json={"reason": ""}, headers=key).status_code == 202
