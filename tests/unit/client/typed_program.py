"""A program of a user, for mypy, which checks it with the tree: each `type: ignore` is a mistake that has to be found.

It is not run.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import assert_type

from cmcl import (
    AsyncClient,
    Client,
    CmclError,
    Item,
    ModalitySpec,
    ModelSpec,
    Query,
    Retries,
    Unreachable,
)
from cmcl.client import AcceptedDataset, Embeddings, Job, WriteResult


def blocking(client: Client) -> None:
    client.create_model(
        "shapes", {"width": 8, "modalities": {"image": {"encoder": "clip"}, "text": 3}}
    )
    image, text = ModalitySpec(width=4), ModalitySpec(width=3, encoder="minilm")
    client.create_model("shapes", ModelSpec(width=8, modalities={"image": image, "text": text}))
    accepted = client.add_dataset("shapes", "fashion", ("image", "text"), [Path("fashion")])
    assert_type(accepted, AcceptedDataset)
    assert_type(client.jobs(model="shapes"), Iterator[Job])
    assert_type(client.embed("shapes", "image", [[0.5]]), Embeddings)
    assert_type(client.embed("shapes", "text", ["a red chair"]), Embeddings)
    assert_type(
        client.embed("shapes", "place", [Query("place", numbers=(48.85, 2.35))]), Embeddings
    )
    query = Query("text", text="a red chair")
    client.search("pictures", query, filter={"field": "label", "equals": "chair"})
    assert_type(client.add_items("pictures", [Item("a", "image", [0.5])]), WriteResult)
    client.add_dataset("shapes", 5, ("image", "text"), [])  # type: ignore[arg-type]
    client.add_dataset("shapes", "fashion", ("image", "text"))  # type: ignore[call-arg]
    client.add_dataset("s", "f", ("a", "b"), [], upload="maybe")  # type: ignore[arg-type]
    print(client.job("job-1").mood)  # type: ignore[attr-defined]


async def awaited(client: AsyncClient) -> None:
    assert_type(await client.job("job-1"), Job)
    assert_type(client.jobs(), AsyncIterator[Job])
    await client.promote("shapes", "one")  # type: ignore[arg-type]


def failing() -> CmclError:
    with Client(retries=Retries(attempts=1)) as client:
        assert_type(Client.job(client, "job-1"), Job)
    return Unreachable("no response")
