"""Markdown page of `benchmarks.training_faults`."""

from collections.abc import Mapping
from typing import Any

_EXPLAINED = (
    "Columns: *resumed*, seconds from the fault to the first update after resuming from a "
    "checkpoint (or, if no rank had to resume, the number of updates until the next report); "
    "*pause*, the longest time without a reported update; *at update*, out of all updates (long "
    "faults use a longer training); *repeated*, updates that were done twice; *attempts*, more "
    "than one if the fault ends the driver and the control plane would submit another; *result*, "
    "compared with a run without a fault."
)


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page."""
    size = document["size"]
    where = ", ".join(f"{name} {value}" for name, value in document["machine"].items())
    setting = (
        f"{size['rows']} pairs, {size['epochs']} epochs, batch {size['batch_size']}, two ranks, "
        f"each on its own Ray node on this machine (the head has no CPUs). {document['updates']} "
        f"updates take {document['seconds']:g} s without a fault. Checkpoints are written every "
        f"{document['checkpoint_seconds']} s (default 60), and a rank counts as hung after "
        f"{document['peer_seconds']} s (default 60)."
    )
    lines = [
        "# Faults while training",
        "",
        "What does a fault cost, and does the result stay the same?",
        "",
        f"Machine: {where}.",
        "",
        setting,
        "",
        _EXPLAINED,
        "",
        (
            "| fault | resumed, s | pause, s | at update | from update | repeated | attempts | ranks "
            "at the end | result |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(outcome) for outcome in document["outcomes"]),
    ]
    return "\n".join(lines) + "\n"


def _row(outcome: Mapping[str, Any]) -> str:
    cells = [
        outcome["fault"],
        _resumed(outcome),
        _known(outcome["pause"]),
        f"{outcome['at_update']} of {outcome['updates']}",
        _known(outcome["resumed_at"]),
        *(str(outcome[name]) for name in ("repeated", "attempts", "ranks")),
        _result(outcome),
    ]
    return f"| {' | '.join(cells)} |"


def _resumed(outcome: Mapping[str, Any]) -> str:
    if outcome["resumed"] is None:
        return f"no resume: {outcome['meanwhile']} updates"
    return f"{outcome['resumed']:g}"


def _known(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _result(outcome: Mapping[str, Any]) -> str:
    if not outcome["came_in_time"]:
        return "**not tested**: training ended before the fault"
    if outcome["distance"] is None:
        return "bit-equal"
    verdict = "the same" if outcome["is_same"] else "**different**"
    return f"{verdict}: {outcome['distance']:.1e} apart"
