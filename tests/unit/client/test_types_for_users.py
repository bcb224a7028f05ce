"""Types and signatures for editors, `help` and type checkers."""

import inspect
import json
import subprocess
import sys

import pytest

from cmcl import AsyncClient, Client

CALLS = sorted(name for name in dir(Client) if not name.startswith("_") and name != "close")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_each_call_shows_what_a_user_gives_and_gets(
    kind: type[Client] | type[AsyncClient],
) -> None:
    client = kind()
    for name in CALLS:
        function, method = getattr(kind, name), getattr(client, name)
        assert inspect.isfunction(function), name
        assert inspect.ismethod(method), name
        assert function.__name__ == name
        assert inspect.getdoc(function), name
        on_class, on_object = inspect.signature(function), inspect.signature(method)
        assert list(on_class.parameters) == ["self", *on_object.parameters], name
        assert on_object.return_annotation is not inspect.Signature.empty, name


def test_both_clients_take_the_same_arguments() -> None:
    for name in CALLS:
        blocking, awaited = (
            inspect.signature(getattr(kind, name)) for kind in (Client, AsyncClient)
        )
        assert blocking.parameters == awaited.parameters
    assert inspect.iscoroutinefunction(AsyncClient.job)
    assert not inspect.iscoroutinefunction(Client.job)


def test_importing_the_contract_loads_no_http_client() -> None:
    program = "import json, sys, cmcl.contract.model; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert {"httpx", "cmcl.client"}.isdisjoint(json.loads(done.stdout))
