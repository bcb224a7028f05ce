"""Types and signatures for editors, `help` and type checkers."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cmcl import AsyncClient, Client

CALLS = sorted(name for name in dir(Client) if not name.startswith("_") and name != "close")

# A program of a user, checked by mypy --strict against the installed package. Each `type: ignore`
# is a mistake that has to be found: one that is not needed is an error as well.
PROGRAM = """
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import assert_type

from cmcl import AsyncClient, Client, CmclError, Item, ModalitySpec, ModelSpec, Query, Retries, Unreachable
from cmcl.client import AcceptedDataset, Embeddings, Job, WriteResult


def blocking(client: Client) -> None:
    client.create_model("shapes", {"width": 8, "modalities": {"image": {"encoder": "clip"}, "text": 3}})
    image, text = ModalitySpec(width=4), ModalitySpec(width=3, encoder="minilm")
    client.create_model("shapes", ModelSpec(width=8, modalities={"image": image, "text": text}))
    accepted = client.add_dataset("shapes", "fashion", ("image", "text"), [Path("fashion")])
    assert_type(accepted, AcceptedDataset)
    assert_type(client.jobs(model="shapes"), Iterator[Job])
    assert_type(client.embed("shapes", "image", [[0.5]]), Embeddings)
    assert_type(client.embed("shapes", "text", ["a red chair"]), Embeddings)
    assert_type(client.embed("shapes", "place", [Query("place", numbers=(48.85, 2.35))]), Embeddings)
    query = Query("text", text="a red chair")
    client.search("pictures", query, filter={"field": "label", "equals": "chair"})
    assert_type(client.add_items("pictures", [Item("a", "image", [0.5])]), WriteResult)
    client.add_dataset("shapes", 5, ("image", "text"), [])  # type: ignore[arg-type]
    client.add_dataset("shapes", "fashion", ("image", "text"))  # type: ignore[call-arg]
    client.add_dataset("s", "f", ("a", "b"), [], upload="maybe")  # type: ignore[arg-type]
    client.job("job-1").mood  # type: ignore[attr-defined]


async def awaited(client: AsyncClient) -> None:
    assert_type(await client.job("job-1"), Job)
    assert_type(client.jobs(), AsyncIterator[Job])
    await client.promote("shapes", "one")  # type: ignore[arg-type]


try:
    with Client(retries=Retries(attempts=1)) as client:
        assert_type(Client.job(client, "job-1"), Job)
except Unreachable as error:
    assert isinstance(error, CmclError)
"""


def test_every_call_of_the_installed_client_is_typed(installed: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    checker = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--config-file="]
    done = subprocess.run(
        [*checker, f"--python-executable={installed}", str(program)],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


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
