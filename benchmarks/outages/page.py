"""The page of `benchmarks.serving_chaos`, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import listed, table

_QUESTION = (
    "Parts of the endpoint die under load. How many requests fail, how, for how long, and is a wrong "
    "answer ever given?"
)
_HOW = """\
- *plain clients* ask once, wait for the whole answer and ask again; whatever gets no answer with status
  200 counts as failed: *cut* (the connection was lost), *refused* (nobody listened), or its status.
  Every answer is compared with the embeddings that it must be.
- *cmcl.Client* asks again by itself where that may help; a call counts as failed where it raises.
- *silence*: the longest time in which no plain client got an answer. *whole*: from the fault until both
  replicas answer at their own doors and HAProxy before them.
- *Ray's proxy*: HAProxy as Ray sets it, which tries again only where it could not connect. *ours*: it
  holds requests of up to {buffer} KiB and sends them to the other replica where the first one dies
  before it answers, which is safe as an embedding changes nothing (`cmcl/haproxy.py`)."""


def markdown(document: Mapping[str, Any]) -> str:
    """Question, machine, configuration, result."""
    how = _HOW.format(buffer=document["configuration"]["buffer of HAProxy, KiB"])
    parts = [
        "# Serving while parts of it die",
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
    return table(("fault", "proxy", *plain, *patient, "wrong answers", *times), rows)


def _kinds(found: Mapping[str, int]) -> str:
    if not found:
        return "**0**"
    return ", ".join(f"{number} {kind}" for kind, number in sorted(found.items()))
