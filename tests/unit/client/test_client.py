"""Requests of the client, and the messages of its errors."""

import socket

import pytest

from cmcl import Client, CmclError
from cmcl.client import Job, Model, Unreachable
from cmcl.contract.dataset import ShardRef
from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.modality import ModalityPair
from tests.fakes.responses import AT, body
from tests.unit.client.either import connected
from tests.unit.client.rest_server import RestServer

PAIR = ModalityPair(first="image", second="text")
MODEL = body(
    Model,
    name="scenes",
    modalities={"image": {"width": 4}, "text": {"width": 3}},
    policy="improve",
)
JOB = body(Job, id="job-1", model="scenes", dataset="ds-1", state="running")


def test_a_dataset_is_posted_without_missing_digests(server: RestServer, client: Client) -> None:
    server.always((409, {}))
    shards = [ShardRef(uri="s3://bucket/a"), ShardRef(uri="s3://bucket/b", sha256="0" * 64)]
    with pytest.raises(CmclError):
        client.add_dataset("scenes", "first", PAIR, shards)
    assert server.asked[0].body == {
        "model": "scenes",
        "name": "first",
        "pair": {"first": "image", "second": "text"},
        "shards": [{"uri": "s3://bucket/a"}, {"uri": "s3://bucket/b", "sha256": "0" * 64}],
        "evaluation_shards": [],
    }


def test_options_of_a_dataset_are_posted_only_if_given(server: RestServer, client: Client) -> None:
    server.always((409, {}))
    clip = EncoderIdentity(kind="open-clip", adapter=1, model="B-32", takes="image", width=4)
    shards = [ShardRef(uri="s3://bucket/a")]
    for post in (client.add_dataset, client.open_dataset, client.dry_run):
        with pytest.raises(CmclError):
            post("scenes", "first", PAIR, shards, max_bad_share=0.0, encoders={"image": clip})
    added, opened, tried = (asked.body for asked in server.asked)
    assert added["max_bad_share"] == 0.0
    assert EncoderIdentity.model_validate(added["encoders"]["image"]) == clip
    assert opened == {**added, "sealed": False}
    assert tried == {**added, "dry_run": True}


def test_a_list_is_read_to_its_last_page(server: RestServer, client: Client) -> None:
    pages = [[{**JOB, "id": f"job-{n}"} for n in numbers] for numbers in ([1, 2], [3])]
    server.always(
        (200, {"items": pages[0], "next_cursor": "a+b/c="}),
        (200, {"items": pages[1], "next_cursor": None}),
    )
    assert [job.id for job in client.jobs("scenes")] == ["job-1", "job-2", "job-3"]
    assert [asked.path for asked in server.asked] == [
        "/v1/jobs?model=scenes&order=asc",
        "/v1/jobs?model=scenes&order=asc&cursor=a%2Bb%2Fc%3D",
    ]


def test_promoting_sends_reason_and_condition_if_given(server: RestServer, client: Client) -> None:
    server.always((200, {"version": 1, "generation": 2}))
    client.promote("scenes", 3)
    client.promote("scenes", 2, "worse on birds", if_generation=7)
    assert [asked.body for asked in server.asked] == [
        {"version": 3},
        {"version": 2, "reason": "worse on birds"},
    ]
    assert [asked.headers.get("if-match") for asked in server.asked] == [None, '"7"']


def test_unknown_fields_are_kept(server: RestServer, client: Client) -> None:
    server.always(
        (200, {**JOB, "mood": "good", "progress": {"phase": "dreaming", "depth": 3, "at": AT}})
    )
    job = client.job("job-1")
    assert (job["mood"], job["state"], job.model_dump()["mood"]) == ("good", "running", "good")
    assert job.progress is not None
    assert (job.progress.phase, job.progress.get("depth")) == ("dreaming", 3)
    assert job.get("no such field", 5) == 5


def test_a_response_without_a_required_field_is_an_error(
    server: RestServer, client: Client
) -> None:
    server.always((200, {"id": "job-1"}, {"x-request-id": "r-5"}))
    with pytest.raises(CmclError, match=r"Job\.preparation: Field required") as e:
        client.job("job-1")
    assert e.value.request_id == "r-5"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"title": "Not Found", "detail": "there is no job 'j-1'"}, "there is no job 'j-1'"),
        ({"title": "Not Found"}, "Not Found"),
        ({}, "HTTP 404"),
        (
            {
                "detail": "the body cannot be used",
                "errors": [{"field": "width", "message": "it is 1, at least 2 is needed"}],
            },
            "the body cannot be used; width: it is 1, at least 2 is needed",
        ),
        ("<html>a\n proxy's page</html>", "HTTP 404: <html>a proxy's page</html>"),
        ("", "HTTP 404: "),
        ('"only text"', 'HTTP 404: "only text"'),
        ("[1]", "HTTP 404: [1]"),
        ({"errors": 5}, "HTTP 404"),
        ({"errors": [5, {}]}, "HTTP 404"),
    ],
)
def test_a_rejection_has_the_servers_message(
    server: RestServer, client: Client, answer: object, words: str
) -> None:
    server.always((404, answer, {"x-cmcl-server": "control-plane"}))
    with pytest.raises(CmclError) as caught:
        client.job("j-1")
    assert str(caught.value) == words
    assert caught.value.status == 404


def test_an_error_has_type_fields_and_request_id(server: RestServer, client: Client) -> None:
    problem = {
        "type": "urn:cmcl:problem:invalid-request",
        "detail": "no",
        "errors": [{"field": "shards[0].uri", "message": "outside", "value": "file:///x"}],
    }
    server.always((422, problem, {"X-Request-ID": "r-7"}))
    with pytest.raises(CmclError) as caught:
        client.job("j-1")
    assert caught.value.type == "urn:cmcl:problem:invalid-request"
    assert [(each.field, each.value) for each in caught.value.fields] == [
        ("shards[0].uri", "file:///x")
    ]
    assert caught.value.request_id == "r-7"


@pytest.mark.parametrize(
    ("name", "path"),
    [("../up?a#b", "..%2Fup%3Fa%23b"), ("..", "%2E%2E"), (".", "%2E"), ("ä b", "%C3%A4%20b")],
)
def test_a_special_name_stays_one_segment_of_the_path(
    server: RestServer, client: Client, name: str, path: str
) -> None:
    with pytest.raises(CmclError):
        client.promote(name, 1)
    assert server.asked[0].path == f"/v1/models/{path}/live"


def test_an_empty_name_is_never_sent(server: RestServer, client: Client) -> None:
    with pytest.raises(CmclError, match="a name is empty"):
        client.delete_model("")
    assert server.asked == []


def test_nan_and_infinity_are_rejected(client: Client) -> None:
    with pytest.raises(CmclError, match="cannot be encoded as JSON"):
        client.embed("scenes", "image", [[1.0, float("nan")]])


def test_a_server_that_does_not_respond_is_named(kind: str) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{held.getsockname()[1]}"
        url = f"http://anna:secret@{host}"
        with connected(kind, url) as client, pytest.raises(Unreachable, match=host) as caught:
            list(client.models())
    assert caught.value.status == 0
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://", "http://[::1"])
def test_an_invalid_address_is_rejected_at_once(url: str) -> None:
    with pytest.raises(CmclError, match="not a valid address"):
        Client(url)
