"""What does the control plane cost: to accept a dataset, to keep many of them, to make a version
live?

`python -m benchmarks.control_plane` measures with SQLite and PostgreSQL (a temporary server), and
runs the whole local system on examples/stream. Each figure has an upper bound from the same run.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.command_line import OneLineParser, count, log_progress, table
from benchmarks.control.backlog import measure_backlog
from benchmarks.control.databases import NAMES, fresh_database
from benchmarks.control.intake import measure_intake
from benchmarks.report import machine
from cmcl.client import Client, CmclError
from cmcl.contract.model import ModelSpec
from cmcl.demo.stream import Stream, read_stream
from cmcl.stack import LocalStack
from cmcl.stack_host import Ports

_RESULTS = Path(".cmcl/benchmarks")

_MODEL = "live"
# Phases of the attempt that any trainer needs; all others are overhead of the system.
_LEARNING = ("training",)

_INTAKE = (
    "Several clients post datasets concurrently, each with an Idempotency-Key; every response "
    "follows a durable commit. *database alone* is the limit: the same rows, written by the same "
    "function in one process without HTTP, one transaction each."
)
_BACKLOG = (
    "Median milliseconds of a reconciliation round (one job runs, the others are queued) and of a "
    "scrape of /metrics, with ten queued jobs, with the full queue, and with the queue and the "
    "history. The ratio is the last to the first."
)
_LIVE = (
    "Seconds from POST to the first response of the new version, on the local system with two "
    "ranks. *updates*: the training loop. *own share*: everything else. The first dataset includes "
    "a cold start of the cluster."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the page, and write page and document."""
    options = _parser().parse_args(arguments)
    document = measured(options)
    page = markdown(document)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / "control-plane"
    stem.with_suffix(".json").write_text(json.dumps(document) + "\n")
    stem.with_suffix(".md").write_text(page)
    print(page)
    print(json.dumps(document), flush=True)
    return 0


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Return the document. Progress is logged to stderr."""
    document: dict[str, Any] = {"intake": {}, "backlog": {}, "machine": machine()}
    for name in NAMES:
        log_progress(f"intake on {name}")
        with tempfile.TemporaryDirectory() as folder, fresh_database(name, Path(folder)) as url:
            document["intake"][name] = measure_intake(
                url, Path(folder), options.seconds, options.clients
            )
        log_progress(f"backlog on {name}")
        with tempfile.TemporaryDirectory() as folder, fresh_database(name, Path(folder)) as url:
            document["backlog"][name] = measure_backlog(
                url, Path(folder), options.queued, options.finished
            )
    if not options.without_ray:
        log_progress("from POST to live on the local system")
        with tempfile.TemporaryDirectory() as folder:
            document["live"] = measure_live(options.stream, Path(folder))
    return document


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.control_plane", description=__doc__)
    parser.add_argument(
        "--seconds", type=count, default=15, help="duration of posting (default: 15)"
    )
    parser.add_argument("--clients", type=count, default=4, help="concurrent clients (default: 4)")
    parser.add_argument("--queued", type=count, default=10_000, help="queued jobs")
    parser.add_argument("--finished", type=count, default=100_000, help="finished jobs")
    parser.add_argument("--stream", type=Path, default=Path("examples/stream"))
    parser.add_argument("--without-ray", action="store_true", help="skip POST to live")
    parser.add_argument("--out", type=Path, default=_RESULTS, help=f"(default: {_RESULTS})")
    return parser


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


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page."""
    parts = [
        "# The control plane",
        f"Machine: {_machine_words(document['machine'])}.",
        "## Intake of datasets",
        _INTAKE,
        table(
            (
                "database",
                "accepted / s",
                "p50 ms",
                "p95 ms",
                "p99 ms",
                "database alone / s",
                "share",
            ),
            [_intake(name, found) for name, found in document["intake"].items()],
        ),
        "## Many jobs",
        _BACKLOG,
        table(
            ("database", "", "few", "queue", "queue and history", "ratio"),
            [row for name, found in document["backlog"].items() for row in _backlog(name, found)],
        ),
    ]
    if "live" in document:
        parts += ["## From POST to live", _LIVE, _live(document["live"])]
    return "\n\n".join(parts) + "\n"


def _intake(name: str, found: Mapping[str, Any]) -> list[str]:
    keys = ("per_second", "p50_ms", "p95_ms", "p99_ms")
    alone, share = found["database_alone_per_second"], found["share_of_database_alone"]
    return [name, *(f"{found[key]:g}" for key in keys), f"{alone:g}", f"{share:.2f}"]


def _backlog(name: str, found: Mapping[str, Any]) -> list[list[str]]:
    stages = ("few", "queue", "queue and history")
    return [
        [
            f"{name} ({found['queued']:,} queued, {found['finished']:,} finished)",
            what,
            *(f"{found[stage][what]['p50_ms']:.2f}" for stage in stages),
            f"{found[f'{what}_ratio']:.2f}",
        ]
        for what in ("round", "scrape")
    ]


def _live(found: Mapping[str, Any]) -> str:
    rows = [
        [
            one["dataset"],
            *(f"{one[key]:.1f}" for key in ("total", "updates", "own_share")),
            ", ".join(f"{kind.removeprefix('job.')} {at:.1f}" for kind, at in one["moves"].items()),
            ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in one["attempt"].items()),
        ]
        for one in found["datasets"]
    ]
    medians = ("median_total", "median_updates", "median_own_share")
    rows.append(["median without the first", *(f"{found[key]:.1f}" for key in medians), "", ""])
    head = (
        "dataset",
        "total",
        "updates",
        "own share",
        "state changes, seconds after POST",
        "phases of the attempt, s",
    )
    return table(head, rows)


def _machine_words(machine: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in machine.items())


if __name__ == "__main__":
    sys.exit(main())
