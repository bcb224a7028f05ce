"""Markdown page of `benchmarks.serving_swaps`."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.command_line import listed, table

_QUESTION = (
    "The live version is swapped repeatedly under load. Does a request fail or mix two versions? "
    "How much slower are requests during swaps? How soon do all replicas serve the new version? "
    "Does memory grow?"
)
_HOW = """\
- A swap is timed by the clients' responses: from just before `live.json` is written until the last
  response by another version, among requests sent after the swap. There is no other load. The
  pointer is then announced, as the control plane does (`POST /internal/announcements`).
- Versions repeat in a cycle longer than a replica's cache, so each is read from the store, verified
  and warmed up; every fifth swap is a rollback to the previous version, which is in memory.
- Every response is compared with the embeddings of the version that it names. Each version has
  different heads, so a response that mixes two versions would be detected.
- *steady*: requests before, between and after rounds of swaps. *swapping*: all requests of the
  rounds. They alternate because the machine's speed varies by a fifth within minutes: with 20 s
  before and after, the same code gave 1.12, 1.40 and 1.43. *in a swap*: requests in progress while
  replicas had different versions. Clients send without a pause and keep both cores busy, so loading
  a version takes time from requests."""


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page."""
    parts = [
        "# Swaps under load",
        "## Question\n" + _QUESTION,
        "## Machine\n" + listed(document["machine"]),
        "## Configuration\n" + listed(document["configuration"]) + "\n\n" + _HOW,
        "## Result\n" + _goals(document["goals"]),
        "### Latency, ms\n" + _latency(document["latency"]),
        "### Swaps, ms until all replicas served the new version\n"
        + _swaps(document["swap_times"]),
        "### Memory\n" + _memory(document["memory"]),
    ]
    return "\n\n".join(parts) + "\n"


def _goals(goals: Sequence[Mapping[str, Any]]) -> str:
    rows = [[one["what"], _number(one["measured"]), str(one["goal"])] for one in goals]
    return table(("", "measured", "goal"), rows)


def _latency(found: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        [name, *(_number(one[key]) for key in ("answers", "p50", "p95", "p99"))]
        for name, one in found.items()
        if one
    ]
    return table(("", "answers", "p50", "p95", "p99"), rows)


def _swaps(found: Mapping[str, Mapping[str, float]]) -> str:
    keys = ("p50", "p95", "most", "never")
    rows = [
        [name, *(_number(one[key]) if key in one else "–" for key in keys)]
        for name, one in found.items()
    ]
    return table(("", *keys), rows)


def _memory(found: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for number, one in enumerate(found, start=1):
        slope = "–"
        if one["slope"] is not None:
            slope = f"{one['slope']['value']:+.2f} ± {one['slope']['half_width']:.2f}"
        rows.append(
            [str(number), *(f"{one[key]:.0f}" for key in ("at_first", "at_50", "at_end")), slope]
        )
    head = (
        "replica",
        "MiB before",
        "after 50 swaps",
        "at the end",
        "MiB per 100 swaps after the 50th",
    )
    return table(head, rows) + "\n\nSlope with its 95 % interval, from means of ten blocks."


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.2f}"
