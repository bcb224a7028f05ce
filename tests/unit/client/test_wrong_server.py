"""Swapped addresses: the error names the server and the variable to set."""

import pytest

from cmcl import Client, CmclError
from cmcl.client import WrongServer
from tests.unit.client.rest_server import Answer, RestServer

PLANE, ENDPOINT = {"x-cmcl-server": "control-plane"}, {"x-cmcl-server": "embeddings"}
# What each server answers to a call that is meant for the other one, with and without the header.
OF_THE_ENDPOINT: list[Answer] = [
    (200, {"object": "list", "data": []}, ENDPOINT),
    (404, {"error": {"message": "there is no such path"}}, ENDPOINT),
    (404, "Not Found", ENDPOINT),
    (200, {"object": "list", "data": []}),
    (404, {"error": {"message": "there is no such path"}}),
]
OF_THE_PLANE: list[Answer] = [
    (200, {"items": [], "next_cursor": None}, PLANE),
    (404, {"type": "urn:cmcl:problem:not-found", "title": "x", "detail": "Not Found"}, PLANE),
    (404, "Not Found", PLANE),
    (200, {"items": [], "next_cursor": None}),
    (404, {"type": "urn:cmcl:problem:not-found", "title": "x", "detail": "Not Found"}),
]


@pytest.mark.parametrize("answer", OF_THE_ENDPOINT)
def test_an_endpoint_at_the_control_planes_address_is_named(
    server: RestServer, client: Client, answer: Answer
) -> None:
    server.always(answer)
    with pytest.raises(WrongServer) as caught:
        list(client.models())
    assert str(caught.value).startswith(f"{server.url} is the embeddings endpoint, but")
    assert "CMCL_URL" in str(caught.value)
    assert len(server.asked) == 1


@pytest.mark.parametrize("answer", OF_THE_PLANE)
def test_a_control_plane_at_the_endpoints_address_is_named(
    server: RestServer, client: Client, answer: Answer
) -> None:
    server.always(answer)
    with pytest.raises(WrongServer) as caught:
        client.served_models()
    assert str(caught.value).startswith(f"{server.url} is the control plane, but")
    assert "CMCL_EMBEDDINGS_URL" in str(caught.value)
    with pytest.raises(WrongServer):
        list(client.collections())


@pytest.mark.parametrize("answer", [answer for answer in OF_THE_ENDPOINT if answer[0] != 200])
def test_following_events_at_the_wrong_server_fails_at_once(
    server: RestServer, client: Client, answer: Answer
) -> None:
    server.always(answer)
    with pytest.raises(WrongServer):
        list(client.events("job-1"))


def test_a_server_with_the_right_header_is_accepted(server: RestServer, client: Client) -> None:
    server.always((200, {"items": [], "next_cursor": None}, PLANE))
    assert list(client.models()) == []
    server.always((404, {"error": {"message": "there is no model"}}, ENDPOINT))
    with pytest.raises(CmclError, match=r"^there is no model$"):
        client.served_model("x")


@pytest.mark.parametrize("answer", [{}, {"items": {}}, {"data": []}])
def test_a_response_without_items_is_not_an_empty_list(
    server: RestServer, client: Client, answer: object
) -> None:
    server.always((200, answer))
    with pytest.raises(CmclError, match="has no list 'items'"):
        list(client.models())
