"""Markdown page of `benchmarks.serving_chaos`."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import listed, table

_QUESTION = (
    "Parts of the endpoint are killed under load. How many requests fail, how, and for how long? Is "
    "any response wrong?"
)
_HOW = """\
- *plain clients* send one request at a time without retries. A request without status 200 counts as
  failed: *cut* (the connection was lost), *refused* (no listener), or its status. Every response is
  compared with the expected embeddings.
- *cmcl.Client* retries; a call counts as failed if it raises.
- *silence*: the longest time without a response to any plain client. *whole*: from the fault until
  both replicas respond directly and through HAProxy.
- *Ray's*: HAProxy with Ray's settings, which retries only failed connections. *ours*: HAProxy
  buffers requests of up to {buffer} KiB and sends them to the other replica if the first one dies
  before it responds. This is safe because an embedding request changes no state
  (`cmcl/haproxy.py`)."""


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page."""
    how = _HOW.format(buffer=document["configuration"]["buffer of HAProxy, KiB"])
    parts = [
        "# Serving while parts are killed",
        "## Question\n" + _QUESTION,
        "## Machine\n" + listed(document["machine"]),
        "## Configuration\n" + listed(document["configuration"]) + "\n\n" + how,
        "## Result\n" + _outcomes(document["outcomes"]),
    ]
    return "\n\n".join(parts) + "\n"


def _outcomes(outcomes: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            one["words"],
            one["settings"],
            f"{one['answers']:,}",
            _kinds(one["failed"]),
            f"{one['patient_calls']:,}",
            _kinds(one["patient_failed"]),
            str(one["wrong"]),
            *(f"{one[key]:.2f}" for key in ("silence", "patient_slowest", "whole")),
        ]
        for one in outcomes
    ]
    plain = ("plain requests", "failed")
    patient = ("calls of cmcl.Client", "failed")
    times = ("silence, s", "slowest call of cmcl.Client, s", "whole, s")
    return table(("fault", "proxy", *plain, *patient, "wrong responses", *times), rows)


def _kinds(found: Mapping[str, int]) -> str:
    if not found:
        return "**0**"
    return ", ".join(f"{number} {kind}" for kind, number in sorted(found.items()))
