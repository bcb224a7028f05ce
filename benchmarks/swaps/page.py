"""The page of `benchmarks.serving_swaps`, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import listed, table

_QUESTION = (
    "Versions swap again and again under load. Does a request fail, is an answer mixed of two versions, "
    "how much longer do requests take meanwhile, how soon is the new version everywhere, "
    "and does memory grow?"
)
_HOW = """\
- A swap is timed by the clients' own answers: from the moment before `live.json` is written until the
  last answer by another version has come, of requests that were sent after the move. Nothing else asks.
  The pointer is then announced, as the control plane does (`POST /internal/announcements`).
- Versions go round in a circle that is longer than what a replica keeps, so each has to be read from
  the store, verified and warmed; every fifth move is a roll back to the one before, which is in memory.
- Every answer is compared with the embeddings that the version it names gives for these rows. Each
  version has other heads, so an answer mixed of two could not pass.
- *steady*: the seconds before, between and after rounds of swaps; *swapping*: all requests of the
  rounds. They alternate because the machine's own pace changes by a fifth within minutes: with 20 s
  before and after, the same code gave 1.12, 1.40 and 1.43. *in a swap*: those that were under way while
  replicas differed. Clients ask without a pause, so that both cores are always busy: what loading a
  version takes, requests do not get."""


def markdown(document: Mapping[str, Any]) -> str:
    """Question, machine, configuration, result."""
    parts = [
        "# Swaps under load",
        "## Question\n" + _QUESTION,
        "## Machine\n" + listed(document["machine"]),
        "## Configuration\n" + listed(document["configuration"]) + "\n\n" + _HOW,
        "## Result\n" + _goals(document["goals"]),
        "### Latency, ms\n" + _latency(document["latency"]),
        "### Swaps, ms until the new version was everywhere\n" + _swaps(document["swap_times"]),
        "### Memory\n" + _memory(document["memory"]),
        f"![Latency over time]({document['picture']})",
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
