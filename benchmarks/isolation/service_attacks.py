"""Attacks on the control plane. Each docstring names the attacker's keys, then its actions."""

import asyncio
import itertools
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.isolation.attacker import MEBIBYTE, Attacker
from benchmarks.isolation.connections import head, post
from cmcl.client import FINAL_STATES

_BOMB = 400 * MEBIBYTE
_EVENTS = "text/event-stream"
_UNREAD_SECONDS = 10.0
_WIDE, _WIDE_ROWS, _WIDE_SECONDS = 3072, 64, 600.0


async def endless_heads(attacker: Attacker) -> None:
    """No key. Four connections send header lines without end, 400 MiB each."""
    lines = b"".join(b"x-%d: %s\r\n" % (n, b"a" * 1000) for n in range(64))

    async def act(_: int) -> None:
        async with attacker.connection(attacker.target.service) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n")
            await attacker.send_repeatedly(writer, lines, _BOMB)
            await reader.read()

    await attacker.run_concurrently(4, act)


async def endless_header(attacker: Attacker) -> None:
    """No key. One connection sends one header value without end, 400 MiB of it."""
    piece = b"a" * (64 << 10)

    async def act(_: int) -> None:
        async with attacker.connection(attacker.target.service) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nx-endless: ")
            await attacker.send_repeatedly(writer, piece, _BOMB)
            await reader.read()

    await attacker.run_concurrently(1, act)


async def unfinished_heads(attacker: Attacker) -> None:
    """No key. 20,000 connections whose heads never end, with another byte every five seconds."""

    start = b"GET /v1/models HTTP/1.1\r\nhost: a\r\nx-slow: "
    await attacker.hold_many(attacker.target.service, 20_000, start, b"a")


async def metrics_flood(attacker: Attacker) -> None:
    """No key. 200 connections ask for /metrics without a pause."""
    data = head("GET", "/metrics")
    await attacker.run_concurrently(200, lambda _: attacker.flood(attacker.target.service, data))


async def openapi_flood(attacker: Attacker) -> None:
    """No key. 300 connections ask for /openapi.json without a pause."""
    data = head("GET", "/openapi.json")
    await attacker.run_concurrently(300, lambda _: attacker.flood(attacker.target.service, data))


async def pipelined_probes(attacker: Attacker) -> None:
    """No key. 50 connections send 5,000 requests for /healthz at once and read no answer."""
    data = head("GET", "/healthz") * 5000

    async def act(_: int) -> None:
        await attacker.leave_unread(attacker.target.service, data, _UNREAD_SECONDS)

    await attacker.run_concurrently(50, act)


async def half_bodies(attacker: Attacker) -> None:
    """A key that may only read. 2,000 connections send 1,000,000 bytes of a body of 1 MiB, and wait."""
    start = head("POST", "/v1/datasets", attacker.target.keys["read"], MEBIBYTE) + b" " * 1_000_000

    await attacker.run_concurrently(2000, lambda _: attacker.hold(attacker.target.service, start))


async def event_streams(attacker: Attacker) -> None:
    """One key that may read. 1,010 streams of events, held open."""
    data = head("GET", "/v1/events", attacker.target.keys["read"], accept=_EVENTS)

    async def act(_: int) -> None:
        async with attacker.connection(attacker.target.service) as (reader, writer):
            writer.write(data)
            status = (await reader.readline()).split()
            attacker.counts[status[1].decode() if len(status) > 1 else "closed"] += 1
            while await reader.read(1 << 16):
                pass
            await asyncio.sleep(1)

    await attacker.run_concurrently(1010, act)


def _wrong_kinds(key: str) -> bytes:
    """Return 1,040,000 bytes with 520,000 invalid values."""
    kinds = b",".join([b"1"] * 520_000)
    return post("/v1/webhooks", key, b'{"url": "https://a.example", "kinds": [' + kinds + b"]}")


def _wrong_shards(key: str) -> bytes:
    """Return 1,020,000 bytes with 340,000 invalid values."""
    shards = b",".join([b"{}"] * 340_000)
    start = b'{"model": "m", "name": "n", "pair": {"first": "a", "second": "b"}, "shards": ['
    return post("/v1/datasets", key, start + shards + b"]}")


async def wrong_kinds(attacker: Attacker) -> None:
    """A key with `admin`. Four connections post webhooks with 520,000 kinds that do not exist."""
    data = _wrong_kinds(attacker.target.keys["admin"])
    await attacker.run_concurrently(4, lambda _: attacker.flood(attacker.target.service, data))


async def wrong_shards(attacker: Attacker) -> None:
    """A key with `write`. Four connections post datasets with 340,000 shards that are none."""
    data = _wrong_shards(attacker.target.keys["write"])
    await attacker.run_concurrently(4, lambda _: attacker.flood(attacker.target.service, data))


async def unread_errors(attacker: Attacker) -> None:
    """Keys with `admin` and `write`. Six connections post both kinds of invalid bodies and read no
    answer."""
    keys = attacker.target.keys
    bodies = [_wrong_kinds(keys["admin"]), _wrong_shards(keys["write"])]

    async def act(number: int) -> None:
        await attacker.leave_unread(attacker.target.service, bodies[number % 2], _UNREAD_SECONDS)

    await attacker.run_concurrently(6, act)


async def many_shards(attacker: Attacker) -> None:
    """A key with `write`. 16 connections post open datasets of 10,000 shards each, alternately
    under the permitted address and as uploads that do not exist."""
    posts, names = itertools.count(), list(attacker.target.widths)
    start = {"model": attacker.target.model, "pair": {"first": names[0], "second": names[1]}}

    async def act(_: int) -> None:
        number = next(posts)
        place = f"{attacker.target.prefix}/{number}" if number % 2 else f"upload:up-{number:06x}"
        uris = [{"uri": f"{place}/{n}" if number % 2 else f"{place}{n:06x}"} for n in range(10_000)]
        body = {**start, "name": f"many-{number}", "sealed": False, "shards": uris}
        answer = await client.post("/v1/datasets", json=body)
        attacker.counts[str(answer.status_code)] += 1
        if answer.is_success:
            attacker.made("write", f"/v1/datasets/{answer.json()['dataset']['id']}")

    async with attacker.client(attacker.target.service, "write") as client:
        await attacker.run_concurrently(16, act)


async def minting(attacker: Attacker) -> None:
    """A key with `admin` and `write`. Eight keys make keys and models without a pause."""
    keys = await attacker.mint(8, ("admin", "write", "embed"))
    numbers = itertools.count()

    async def act(worker: int) -> None:
        headers = {"authorization": f"Bearer {keys[worker % len(keys)]}"}
        number = next(numbers)
        key = {"name": f"more-{number}", "scopes": ["embed"]}
        model = {"name": f"mallory-more-{number}", "modalities": {"a": 2, "b": 2}}
        for path, body in (("/v1/keys", key), ("/v1/models", model)):
            answer = await client.post(path, json=body, headers=headers)
            attacker.counts[f"{path} {answer.status_code}"] += 1
            if answer.is_success:
                made = answer.json()["id" if path == "/v1/keys" else "name"]
                attacker.made("admin", f"{path}/{made}")

    async with attacker.client(attacker.target.service, "admin") as client:
        await attacker.run_concurrently(8, act)


async def stalled_files(attacker: Attacker) -> None:
    """A key with `write`. 20 files that send one byte every five seconds."""
    size, key = 32 * MEBIBYTE, attacker.target.keys["write"]
    paths: list[str] = []
    async with attacker.client(attacker.target.service, "write") as client:
        for _ in range(attacker.many(20)):
            answer = await client.post("/v1/uploads", json={"filename": "slow", "bytes": size})
            if answer.is_error:
                attacker.counts[f"uploads refused, {answer.status_code}"] += 1
                break
            paths.append(f"/v1/uploads/{answer.json()['id']}")
            attacker.made("write", paths[-1])

    async def act(number: int) -> None:
        path = f"{paths[number % len(paths)]}/file"
        start = head("PUT", path, key, size, content_type="application/octet-stream")
        await attacker.hold(attacker.target.service, start + b"a" * 1000, b"a")

    await attacker.run_concurrently(20, act)


async def wide_branches(attacker: Attacker) -> None:
    """Keys with `write` and `embed`. A model of width 2,048 with features of width 3,072, branched 25
    times, and each branch asked for an embedding. The model is trained first, which takes minutes."""
    wide = "mallory-wide"
    async with (
        attacker.client(attacker.target.service, "admin") as client,
        attacker.client(attacker.target.endpoint, "embed") as endpoint,
    ):
        await _train_wide(attacker, client, wide)
        branches = iter(range(25))
        question = {"modality": "a", "input": [[0.5] * _WIDE]}

        async def act(_: int) -> None:
            for number in branches:
                name = f"{wide}-{number}"
                answer = await client.post(
                    f"/v1/models/{wide}/branch", json={"name": name, "version": 1}
                )
                attacker.counts[f"branch {answer.status_code}"] += 1
                if answer.is_success:
                    attacker.made("admin", f"/v1/models/{name}")
            for number in range(25):
                body = {**question, "model": f"{wide}-{number}"}
                answer = await endpoint.post("/v1/embeddings", json=body)
                attacker.counts[f"embeddings {answer.status_code}"] += 1

        await attacker.run_concurrently(1, act)
        attacker.made("admin", f"/v1/models/{wide}")


async def _train_wide(attacker: Attacker, client: httpx.AsyncClient, name: str) -> None:
    """Train version 1 of a model with the widest heads that a small machine supports."""
    folder = Path(url2pathname(urlsplit(attacker.target.prefix).path))
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    columns = {
        side: generator.standard_normal((_WIDE_ROWS, _WIDE), dtype=np.float32)
        for side in ("feature_a", "feature_b")
    }
    ids = [str(number) for number in range(_WIDE_ROWS)]
    features = {side: list(rows) for side, rows in columns.items()}
    pq.write_table(pa.table({"id": ids, **features}), folder / "wide.parquet")
    spec = {
        # Trains soonest; the heads are as large as with any other.
        "method": "vanilla",
        "lift": 0,
        "width": 2048,
        "modalities": {"a": _WIDE, "b": _WIDE},
        "training": {"epochs": 1, "batch_size": _WIDE_ROWS},
    }
    (await client.post("/v1/models", json={"name": name, **spec})).raise_for_status()
    body = {
        "model": name,
        "name": "wide",
        "pair": {"first": "a", "second": "b"},
        "shards": [{"uri": f"{attacker.target.prefix}/wide.parquet"}],
    }
    accepted = (await client.post("/v1/datasets", json=body)).raise_for_status().json()
    job = accepted["job"]
    async with asyncio.timeout(_WIDE_SECONDS):
        while job["state"] != "published":
            if job["state"] in FINAL_STATES:
                raise RuntimeError(f"the job of the wide model is {job['state']}: {job['message']}")
            await asyncio.sleep(0.5)
            answer = await client.get(f"/v1/jobs/{accepted['job']['id']}")
            job = answer.raise_for_status().json()
