"""The page of the benchmark of faults."""

from collections.abc import Mapping
from typing import Any

_EXPLAINED = """Columns: *resumed*, seconds from the fault to the first update of the ranks that went on from a checkpoint (or that no rank had to go back, and how many updates the next news told of); *pause*, the longest time without news of another update; *at update*, of all, which are more where a fault takes longer than the rest of the usual training; *repeated*, updates that were done twice; *attempts*, more than one where the fault ends the driver and the control plane would submit another; *result*, beside that of a run that nothing happened to."""


def markdown(document: Mapping[str, Any]) -> str:
    """Question, machine, table."""
    size = document["size"]
    where = ", ".join(f"{name} {value}" for name, value in document["machine"].items())
    setting = (
        f"{size['rows']} pairs, {size['epochs']} epochs, batch {size['batch_size']}, two ranks, each "
        f"on a Ray node of its own on this machine (head without CPUs). {document['updates']} updates "
        f"take {document['seconds']:g} s undisturbed. A checkpoint every "
        f"{document['checkpoint_seconds']} s (60 by default), a hang is one of "
        f"{document['peer_seconds']} s (60 by default)."
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
        "| fault | resumed, s | pause, s | at update | from update | repeated | attempts | ranks at the end | result |",
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
        return f"went on: {outcome['meanwhile']} updates"
    return f"{outcome['resumed']:g}"


def _known(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _result(outcome: Mapping[str, Any]) -> str:
    if not outcome["came_in_time"]:
        return "**not tested**: the training was over before the fault was"
    if outcome["distance"] is None:
        return "equal to the bit"
    verdict = "the same" if outcome["is_same"] else "**another one**"
    return f"{verdict}: {outcome['distance']:.1e} apart"
