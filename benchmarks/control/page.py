"""Markdown page of `benchmarks.control_plane`."""

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import table

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


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page."""
    parts = [
        "# The control plane",
        f"Machine: {_words(document['machine'])}.",
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


def _words(machine: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in machine.items())
