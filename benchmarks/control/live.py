"""Breakdown of the time from a dataset's POST to the first response of its version.

Each dataset of the example stream passes through the whole local system. Times of state changes
come from the control plane's events, times within the attempt from its report.
"""

import time
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from cmcl.client import Client, CmclError
from cmcl.contract.model import ModelSpec
from cmcl.demo.stream import Stream, read_stream
from cmcl.ports import Ports
from cmcl.stack import LocalStack

_MODEL = "live"
# Phases of the attempt that any trainer needs; all others are overhead of the system.
_LEARNING = ("training",)


def measure_live(stream_folder: Path, folder: Path) -> dict[str, Any]:
    """Return seconds of each part, by dataset and as medians. The first dataset includes a cold
    start of Ray."""
    stream = read_stream(stream_folder)
    stack = LocalStack(folder, Ports.free(), ranks=2, allowed_prefixes=(stream.folder.as_uri(),))
    with stack, Client(stack.service_url, stack.embeddings_url) as client:
        client.create_model(_MODEL, ModelSpec(modalities=stream.modalities))
        found = [_one(client, stack, stream, number) for number in range(len(stream.datasets))]
    warm = found[1:]
    return {
        "datasets": found,
        "median_total": round(median(one["total"] for one in warm), 2),
        "median_updates": round(median(one["updates"] for one in warm), 2),
        "median_own_share": round(median(one["own_share"] for one in warm), 2),
        "first_own_share": found[0]["own_share"],
    }


def _one(client: Client, stack: LocalStack, stream: Stream, number: int) -> dict[str, Any]:
    dataset = stream.datasets[number]
    posted = time.time()
    accepted = client.add_dataset(
        _MODEL, dataset.name, dataset.pair, dataset.shards, dataset.evaluation_shards
    )
    job = str(accepted["job"]["id"])
    client.watch(job, poll_seconds=0.05)
    modality = dataset.pair.first
    row = stream.probe_rows(1)[modality]
    _await_version(client, modality, row, number + 1)
    total = time.time() - posted
    report = client.version(_MODEL, number + 1).report
    updates = sum(report.seconds.get(phase, 0.0) for phase in _LEARNING)
    return {
        "dataset": dataset.name,
        "total": round(total, 2),
        "updates": round(updates, 2),
        "own_share": round(total - updates, 2),
        "moves": _moves(stack, job, posted),
        "attempt": report.seconds,
    }


def _await_version(client: Client, modality: str, row: list[list[float]], version: int) -> None:
    """Wait until the embeddings endpoint uses the version."""
    while True:
        try:
            if client.embed(_MODEL, modality, row).version >= version:
                return
        except CmclError:
            pass  # No version is live yet.
        time.sleep(0.02)


def _moves(stack: LocalStack, job: str, posted: float) -> dict[str, float]:
    """Return the seconds from the POST to each state of the job."""
    page = httpx.get(f"{stack.service_url}/v1/events", params={"limit": 200}).json()
    return {
        event["kind"]: round(datetime.fromisoformat(event["created_at"]).timestamp() - posted, 2)
        for event in page["items"]
        if event.get("job") == job
    }
