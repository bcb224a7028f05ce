"""Attacks on the embeddings endpoint, and on both servers at once. Each docstring names the
attacker's keys, then its actions."""

import base64
import itertools
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np

from benchmarks.isolation.attacker import MEBIBYTE, Attacker
from benchmarks.isolation.connections import head, post, read_answer

_JSON = "application/json"
_RAW = "application/octet-stream"
_ROWS = 4096
_UNREAD_SECONDS = 10.0
_ITEMS = 2048
# One list entry takes two bytes in JSON, and several times that when filters are evaluated.
_PAYLOAD = {"shade": [1] * 1000}


def _embeddings_path(attacker: Attacker) -> str:
    """Return the path for raw rows of the narrowest modality."""
    return (
        f"/v1/embeddings?model={attacker.target.model}&modality={_modality(attacker)}&dtype=float32"
    )


def _modality(attacker: Attacker) -> str:
    return min(attacker.target.widths, key=lambda name: attacker.target.widths[name])


def _rows(attacker: Attacker, rows: int) -> bytes:
    width = attacker.target.widths[_modality(attacker)]
    return np.random.default_rng(0).standard_normal((rows, width), dtype=np.float32).tobytes()


async def idle_connections(attacker: Attacker) -> None:
    """No key. 4,200 connections to the endpoint that send nothing."""

    await attacker.hold_many(attacker.target.endpoint, 4200, b"")


async def stalled_bodies(attacker: Attacker) -> None:
    """A key with `admin` and `embed`. Eight keys each declare a body of 64 MiB, send 300 KB and wait."""
    keys = await attacker.mint(8, ("embed",))

    async def act(number: int) -> None:
        key = keys[number % len(keys)]
        start = head("POST", _embeddings_path(attacker), key, 64 * MEBIBYTE, content_type=_RAW)
        await attacker.hold(attacker.target.endpoint, start + b"\0" * 300_000)

    await attacker.run_concurrently(8, act)


async def many_keys_rows(attacker: Attacker) -> None:
    """A key with `admin` and `embed`. 16 keys each ask for 4,096 rows without a pause."""
    keys, rows = await attacker.mint(16, ("embed",)), _rows(attacker, _ROWS)

    async def act(number: int) -> None:
        data = post(_embeddings_path(attacker), keys[number % len(keys)], rows, _RAW)
        await attacker.flood(attacker.target.endpoint, data)

    await attacker.run_concurrently(16, act)


async def unread_embeddings(attacker: Attacker) -> None:
    """A key with `embed`. 64 connections ask for 4,096 rows as JSON and read no answer."""
    data = post(
        _embeddings_path(attacker), attacker.target.keys["embed"], _rows(attacker, _ROWS), _RAW
    )

    async def act(_: int) -> None:
        await attacker.leave_unread(attacker.target.endpoint, data, _UNREAD_SECONDS)

    await attacker.run_concurrently(64, act)


async def fill_collections(attacker: Attacker) -> None:
    """A key with `embed`. Four connections add rows with large payloads until the collection is full."""
    numbers = itertools.count()
    async with _collection(attacker, "mallory-full") as add:
        await attacker.run_concurrently(4, lambda _: add(next(numbers)))


async def costly_searches(attacker: Attacker) -> None:
    """A key with `embed`. 16 connections search 8,192 rows with the longest filter and 1,000 hits."""
    name = "mallory-costly"
    values = [{"field": "shade", "in": list(range(n, n + 100))} for n in range(2, 64)]
    query = {"modality": _modality(attacker), "feature": _feature(attacker)}
    body = {"query": query, "top_k": 1000, "exact": True, "filter": {"not": {"or": values}}}
    key = attacker.target.keys["embed"]
    data = post(f"/v1/collections/{name}/search", key, json.dumps(body).encode())
    async with _collection(attacker, name) as add:
        for number in range(8192 // _ITEMS):
            await add(number)
        await attacker.run_concurrently(
            16, lambda _: attacker.flood(attacker.target.endpoint, data)
        )


@asynccontextmanager
async def _collection(
    attacker: Attacker, name: str
) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """Create a collection, yield a function that adds the n-th batch of rows, and delete the
    collection at the end."""
    path = f"/v1/collections/{name}"
    item = {"modality": _modality(attacker), "feature": _feature(attacker), "payload": _PAYLOAD}
    # Only the ids differ between requests.
    rest = json.dumps(item)[1:]
    async with attacker.client(attacker.target.endpoint, "embed") as client:

        async def add(batch: int) -> None:
            ids = range(batch * _ITEMS, (batch + 1) * _ITEMS)
            body = f'{{"items":[{",".join(f"""{{"id":"{each}",{rest}""" for each in ids)}]}}'
            answer = await client.post(
                f"{path}/items", content=body, headers={"content-type": _JSON}
            )
            attacker.counts[f"items {answer.status_code}"] += 1

        answer = await client.put(path, json={"model": attacker.target.model})
        answer.raise_for_status()
        try:
            yield add
        finally:
            await client.delete(path)


def _feature(attacker: Attacker) -> str:
    return base64.b64encode(_rows(attacker, 1)).decode()


async def nested_json(attacker: Attacker) -> None:
    """Keys with `write` and `embed`. Eight connections post arrays nested as deeply as a body permits:
    1 MB to the service, 8 MB to the endpoint."""
    keys = attacker.target.keys
    service = post("/v1/models", keys["write"], _nested("modalities", 500_000))
    endpoint = post("/v1/embeddings", keys["embed"], _nested("input", 4_000_000))

    async def act(number: int) -> None:
        if number % 2:
            await attacker.flood(attacker.target.service, service)
        else:
            await attacker.flood(attacker.target.endpoint, endpoint)

    await attacker.run_concurrently(8, act)


def _nested(field: str, depth: int) -> bytes:
    return b'{"model": "m", "%s": ' % field.encode() + b"[" * depth + b"]" * depth + b"}"


async def wrong_keys(attacker: Attacker) -> None:
    """No key. 100 connections send a different invalid key with each request, to both servers."""

    async def act(number: int) -> None:
        tried = (f"cmcl_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}" for _ in range(1000))
        url = attacker.target.endpoint if number % 2 else attacker.target.service
        await attacker.flood(url, *(head("GET", "/v1/models", key) for key in tried))

    await attacker.run_concurrently(100, act)


async def tiny_chunks(attacker: Attacker) -> None:
    """Keys with `write` and `embed`. 16 connections send bodies of 1 MB in chunks of one byte, half of
    them to each server."""
    target, chunks = attacker.target, b"1\r\na\r\n" * 10_000

    async def act(number: int) -> None:
        url, path, key = (
            (target.endpoint, "/v1/embeddings", target.keys["embed"])
            if number % 2
            else (target.service, "/v1/datasets", target.keys["write"])
        )
        async with attacker.connection(url) as (reader, writer):
            writer.write(head("POST", path, key, content_type=_JSON, transfer_encoding="chunked"))
            await attacker.send_repeatedly(writer, chunks, 100 * len(chunks))
            writer.write(b"0\r\n\r\n")
            attacker.counts[str(await read_answer(reader))] += 1

    await attacker.run_concurrently(16, act)
