"""The key is sent to the two servers only, and appears in no printable text."""

import traceback

import pytest

from cmcl import AsyncClient, Client, CmclError
from cmcl.client import CreatedKey, CreatedWebhook, Whoami
from tests.fakes.responses import body, response
from tests.unit.client.either import connected
from tests.unit.client.rest_server import RestServer

KEY = "cmcl_0123456789ab_aSecretThatMustNotShow"


def test_a_key_is_sent_as_bearer_and_the_argument_overrides_the_environment(
    kind: str, server: RestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.always((200, body(Whoami)))
    monkeypatch.setenv("CMCL_KEY", "of-the-environment")
    with connected(kind, server.url) as client:
        client.whoami()
    with connected(kind, server.url, key=KEY) as client:
        client.whoami()
    monkeypatch.setenv("CMCL_KEY", "")
    with connected(kind, server.url) as client:
        client.whoami()
    sent = [asked.headers.get("authorization") for asked in server.asked]
    assert sent == ["Bearer of-the-environment", f"Bearer {KEY}", None]


def test_the_endpoint_gets_the_key_and_its_rejection_is_shown(
    kind: str, server: RestServer
) -> None:
    refusal = {"error": {"message": "the key is not valid", "code": "invalid_api_key"}}
    server.always((401, refusal))
    with (
        connected(kind, server.url, key=KEY) as client,
        pytest.raises(CmclError, match="the key is not valid") as caught,
    ):
        client.embed("scenes", "image", [[1.0]])
    assert caught.value.status == 401
    assert [asked.headers.get("authorization") for asked in server.asked] == [f"Bearer {KEY}"]


def test_no_repr_and_no_error_has_the_key(kind: str, server: RestServer) -> None:
    server.always((401, {"detail": "a valid key is needed"}))
    with connected(kind, server.url, key=KEY) as client:
        with pytest.raises(CmclError) as caught:
            client.whoami()
        texts = [repr(client), str(client), "".join(traceback.format_exception(caught.value))]
    for shown in (Client(key=KEY), AsyncClient(key=KEY)):
        texts += [repr(shown), repr(shown._connection)]
    assert [text for text in texts if "aSecret" in text] == []


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "umlaut-ä", "\x7f"])
def test_an_invalid_key_is_rejected_without_being_quoted(key: str) -> None:
    with pytest.raises(CmclError) as caught:
        Client(key=key)
    assert "invalid characters" in str(caught.value)
    assert not key or key not in str(caught.value)


def test_secrets_in_responses_are_hidden_by_default() -> None:
    made, hook = response(CreatedKey, key=KEY), response(CreatedWebhook, secret=KEY)
    assert "aSecret" not in f"{made!r} {made} {hook!r} {hook} {made.model_dump()}"
    assert made.key is not None
    assert made.key.get_secret_value() == KEY
    assert KEY in made.model_dump_json()
    assert KEY in hook.model_dump_json()
