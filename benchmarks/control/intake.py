"""Datasets accepted per second, over HTTP and by the database alone.

The upper bound, from the same run: the same rows written by the same function without HTTP, one
durable transaction per dataset. The ratio shows the cost of HTTP.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from benchmarks.control.databases import spread
from cmcl.contract.model import ModelSpec
from cmcl.stack_host import Ports
from service.core.principal import LOCAL
from service.core.settings import Settings
from service.database.engine import Database, open_database
from service.database.migrations import upgrade
from service.datasets.intake import Intake, NewDataset, accept_dataset
from service.registry.models import Limits, create_model

_SPEC = ModelSpec(modalities={"image": 1280, "text": 384})
_PREFIX = "s3://captures"
_SETTINGS = Settings(allowed_prefixes=(_PREFIX,))
_READY_SECONDS = 60.0


def measure_intake(url: str, folder: Path, seconds: float, clients: int) -> dict[str, Any]:
    """Return both rates, the latencies over HTTP, and the ratio."""
    alone = _without_http(url, seconds)
    with running_service(url, folder) as address:
        accepted = over_http(address, seconds, clients)
    return {
        **accepted,
        "database_alone_per_second": alone,
        "share_of_database_alone": round(accepted["per_second"] / alone, 3),
    }


def add_model(database: Database, now: datetime) -> None:
    """Create the model whose datasets are posted."""
    with database.write() as connection:
        create_model(connection, "intake", _SPEC, LOCAL, now, Limits(10**6, 512 << 20))


def _body(name: str) -> dict[str, Any]:
    return {
        "model": "intake",
        "name": "one",
        "pair": {"first": "image", "second": "text"},
        "shards": [{"uri": f"{_PREFIX}/{name}.parquet"}],
    }


def _without_http(url: str, seconds: float) -> float:
    database = open_database(url)
    upgrade(database)
    now = datetime.now(UTC)
    add_model(database, now)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        request = NewDataset.model_validate(_body(f"alone-{done}"))
        intake = Intake.of(LOCAL, now, _SETTINGS, request)
        with database.write() as connection:
            accept_dataset(connection, request, intake)
        done += 1
    rate = done / (time.perf_counter() - began)
    database.close()
    return round(rate, 1)


@contextmanager
def running_service(url: str, folder: Path, until: str = "/healthz") -> Iterator[str]:
    """Run a control plane without a reachable cluster, so that all posted jobs stay queued; yield its address.

    It is waited for until a GET of the path `until` has status 200.
    """
    port = Ports.free().service
    environment = {
        **os.environ,
        "CMCL_DATABASE_URL": url,
        "CMCL_STORE_URI": (folder / "store").as_uri(),
        "CMCL_ALLOWED_PREFIXES": _PREFIX,
        "CMCL_RAY_ADDRESS": "http://127.0.0.1:9",
        "CMCL_PORT": str(port),
        "CMCL_AUTH": "off",
        "CMCL_LOG_LEVEL": "warning",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "none",
    }
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service"], env=environment, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _await(f"{address}{until}")
        yield address
    finally:
        process.terminate()
        process.wait()


def _await(url: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        try:
            httpx.get(url, timeout=1).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise RuntimeError(f"{url} has not answered within {_READY_SECONDS:g} s")


def over_http(address: str, seconds: float, clients: int) -> dict[str, Any]:
    """Post datasets for so many seconds; return the rate and the latencies."""
    stop = time.monotonic() + seconds
    found: list[list[float]] = [[] for _ in range(clients)]
    threads = [
        threading.Thread(target=_post_until, args=(address, stop, number, found[number]))
        for number in range(clients)
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = time.perf_counter() - began
    latencies = [each for one in found for each in one]
    figures: Mapping[str, float] = spread(latencies)
    return {
        "clients": clients,
        "accepted": len(latencies),
        "per_second": round(len(latencies) / taken, 1),
        **figures,
    }


def _post_until(address: str, stop: float, number: int, found: list[float]) -> None:
    with httpx.Client(base_url=address, timeout=30) as client:
        count = 0
        while time.monotonic() < stop:
            headers = {"Idempotency-Key": f"{number}-{count}"}
            began = time.perf_counter()
            answer = client.post("/v1/datasets", json=_body(f"{number}-{count}"), headers=headers)
            found.append(time.perf_counter() - began)
            answer.raise_for_status()
            count += 1
