"""Figures of each attack, from requests and process samples; goals and the page."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.command_line import listed, table
from benchmarks.isolation.bystander import PROBES, TIMEOUT_SECONDS, Record
from benchmarks.isolation.watch import PROXY, REPLICA, ROLES, SERVICE, Sample

Samples = Sequence[Mapping[str, Sample]]
_PERCENT_99 = 0.99


@dataclass(frozen=True)
class Goals:
    """Limits for each attack, in seconds and MiB of PSS.

    The limit of p99 is the larger of `p99_s` and `p99_times_quiet` times the quiet p99. `mib`:
    peak of a role.
    `kept_mib`, `kept_share`: permitted growth of memory after the recovery, whichever is
    larger.
    """

    failed: int = 0
    p99_s: float = 0.5
    p99_times_quiet: float = 3.0
    healthz_s: float = 1.0
    mib: tuple[tuple[str, float], ...] = ((SERVICE, 400), (PROXY, 128), (REPLICA, 4096))
    kept_mib: float = 64.0
    kept_share: float = 0.25
    kept_descriptors: int = 64


@dataclass(frozen=True)
class Windows:
    """Boundaries of the windows: quiet from `begin`, attack from `attack`, recovery from `over` to
    `end`."""

    begin: float
    attack: float
    over: float
    end: float


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the nearest-rank percentile, or None for no values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def requests(records: Sequence[Record], windows: Windows) -> dict[str, Any]:
    """Return figures of the other owner's requests. A request belongs to the window in which it
    began.

        Probes of /healthz are not counted as `requests`; they have separate figures.
    """
    quiet = [each for each in records if windows.begin <= each.begin < windows.attack]
    attacked = [each for each in records if windows.attack <= each.begin < windows.over]
    after = [each for each in records if windows.over <= each.begin < windows.end]
    work = _work(attacked)
    kinds = sorted({each.kind for each in work})
    return {
        **{f"quiet_{name}": value for name, value in _times(_work(quiet)).items()},
        **_times(work),
        "requests": len(work),
        "failed": _failed(work),
        "failed_quiet": _failed(quiet),
        "failed_afterwards": _failed(after),
        "failures": dict(Counter(_cause(each) for each in attacked if each.failed)),
        "kinds": {kind: _kind([each for each in work if each.kind == kind]) for kind in kinds},
        "quiet_healthz_worst_s": _worst(quiet),
        "healthz_worst_s": _worst(attacked),
        "healthz_failed": _failed(_probes(attacked)),
    }


def processes(quiet: Samples, later: Samples) -> dict[str, Any]:
    """Return resource use of the processes before the attack, and from its start to the end of the
    recovery."""
    before, end = quiet[-1], later[-1]
    return {
        "quiet_mib": {role: round(before[role].mib, 1) for role in ROLES},
        "peak_mib": {role: round(max(each[role].mib for each in later), 1) for role in ROLES},
        "end_mib": {role: round(end[role].mib, 1) for role in ROLES},
        "descriptors": {role: _descriptors(role, before, later) for role in ROLES},
        "ended": [role for role in ROLES if before[role].numbers - end[role].numbers],
    }


def missed(found: Mapping[str, Any], goals: Goals) -> list[str]:
    """Return the names of figures that miss their goals."""
    if "error" in found:
        return ["error"]
    names = ("failed", "failed_afterwards", "healthz_failed")
    wrong = [name for name in names if found[name] > goals.failed]
    bound = max(goals.p99_s, goals.p99_times_quiet * (found["quiet_p99_s"] or 0))
    # Without any request nothing is measured, so no goal is met.
    if found["p99_s"] is None or found["p99_s"] > bound:
        wrong.append("p99_s")
    if found["healthz_worst_s"] is None or found["healthz_worst_s"] > goals.healthz_s:
        wrong.append("healthz_worst_s")
    wrong += [f"peak_mib.{role}" for role, most in goals.mib if found["peak_mib"][role] > most]
    if found.get("dataset", {}).get("state", "published") != "published":
        wrong.append("dataset")
    for role in ROLES:
        if found["descriptors"][role]["peak"] >= found["descriptors"][role]["limit"]:
            wrong.append(f"descriptors.{role}")
    return wrong + kept(found, goals) + [f"ended.{role}" for role in found["ended"]]


def kept(found: Mapping[str, Any], goals: Goals) -> list[str]:
    """Return the names of resources of `processes` that were not released."""
    names = []
    for role in ROLES:
        before, end = found["quiet_mib"][role], found["end_mib"][role]
        if end > before + max(goals.kept_mib, goals.kept_share * before):
            names.append(f"end_mib.{role}")
        descriptors = found["descriptors"][role]
        if descriptors["end"] > descriptors["quiet"] + goals.kept_descriptors:
            names.append(f"descriptors_kept.{role}")
    return names


def _work(records: Sequence[Record]) -> list[Record]:
    return [each for each in records if each.kind not in PROBES]


def _probes(records: Sequence[Record]) -> list[Record]:
    return [each for each in records if each.kind in PROBES]


def _times(records: Sequence[Record]) -> dict[str, float | None]:
    seconds = [each.seconds for each in records]
    found = {"p50_s": percentile(seconds, 0.5), "p99_s": percentile(seconds, _PERCENT_99)}
    return {name: value and round(value, 4) for name, value in found.items()}


def _failed(records: Sequence[Record]) -> int:
    return sum(each.failed for each in records)


def _cause(record: Record) -> str:
    return f"{record.kind}: {record.error or record.status}"


def _kind(records: Sequence[Record]) -> dict[str, Any]:
    return {"requests": len(records), "failed": _failed(records), **_times(records)}


def _worst(records: Sequence[Record]) -> float | None:
    """Return the slowest probe in seconds; a failed probe counts as a time-out."""
    probes = _probes(records)
    seconds = [TIMEOUT_SECONDS if each.failed else each.seconds for each in probes]
    return round(max(seconds), 4) if seconds else None


def _descriptors(role: str, before: Mapping[str, Sample], later: Samples) -> dict[str, int]:
    return {
        "quiet": before[role].descriptors,
        "peak": max(each[role].descriptors for each in later),
        "end": later[-1][role].descriptors,
        "limit": max(each[role].limit for each in [before, *later]),
    }


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page."""
    attacks: Mapping[str, Mapping[str, Any]] = document["attacks"]
    shown = {name: found for name, found in attacks.items() if "error" not in found}
    held = sum(not found["missed"] for found in attacks.values())
    question = (
        "Do attacks of another owner, or of a client without a key, affect the work of one owner on "
        "the same system?\n"
    )
    summary = (
        f"**{held} of {len(attacks)} attacks meet every goal.** Bold: a missed goal. The last "
        "column lists resources that were not released by the end of the recovery, and processes "
        "that ended; such a part is restarted before the next attack. A recovery ends when all is "
        "released.\n"
    )
    others = (
        "\nThreats that are not load are covered by tests instead (docs/security.md): files and "
        "sockets that other users of the machine can open, addresses of webhooks, repeated headers, "
        "and files with false metadata.\n"
    )
    errors = [
        f"\n{name} was **not tested**: {found['error']}"
        for name, found in attacks.items()
        if "error" in found
    ]
    done = [[name, found["words"], _counts(found["attacker"])] for name, found in shown.items()]
    return "\n".join(
        [
            "# Isolation: one owner attacks while another works\n",
            "## Question",
            question,
            "## Machine",
            listed(document["machine"]),
            "\n## Configuration",
            listed(document["configuration"]),
            "\n## Goals",
            _goals(document["goals"]),
            "\n## Result",
            summary,
            _seen(shown),
            *errors,
            "\n## What failed",
            _failures(shown),
            "\n## The attacks",
            table(["attack", "keys and actions of the attacker", "counts"], done),
            others,
        ]
    )


def _goals(goals: Mapping[str, Any]) -> str:
    memory = ", ".join(f"{role} {most:g}" for role, most in goals["mib"])
    return listed(
        {
            "failed requests and probes of the other owner, during and after the attack": goals[
                "failed"
            ],
            "p99 of the other owner's requests": f"{goals['p99_s']:g} s, or "
            f"{goals['p99_times_quiet']:g} times the quiet one",
            "slowest /healthz": f"{goals['healthz_s']:g} s",
            "peak of memory (PSS), MiB": memory,
            "released after the recovery": f"memory except {goals['kept_mib']:g} MiB or "
            f"{goals['kept_share']:.0%}, descriptors except {goals['kept_descriptors']}",
            "processes": "none ends or reaches its descriptor limit",
            "dataset of the other owner": "published",
        }
    )


def _seen(shown: Mapping[str, Mapping[str, Any]]) -> str:
    heads = ["attack", "failed", "of", "afterwards", "quiet p99, s", "p99, s", "/healthz, s"]
    rows = []
    for name, found in shown.items():
        cells = {
            "failed": found["failed"] + found["healthz_failed"],
            "requests": found["requests"],
            "failed_afterwards": found["failed_afterwards"],
            "quiet_p99_s": _seconds(found["quiet_p99_s"]),
            "p99_s": _seconds(found["p99_s"]),
            "healthz_worst_s": _seconds(found["healthz_worst_s"]),
            **{f"peak_mib.{role}": f"{found['peak_mib'][role]:.0f}" for role in ROLES},
            "recovery_s": f"{found['recovery_s']:.0f}",
            "dataset": _dataset(found),
        }
        bold = {*found["missed"], *(["failed"] if "healthz_failed" in found["missed"] else [])}
        written = [f"**{cell}**" if key in bold else str(cell) for key, cell in cells.items()]
        others = ("end_mib", "descriptors", "descriptors_kept", "ended")
        rest = [each for each in found["missed"] if each.partition(".")[0] in others]
        rows.append([name, *written, "**" + ", ".join(rest) + "**" if rest else ""])
    heads += [*(f"{role}, MiB" for role in ROLES), "recovery, s", "dataset", "kept, ended"]
    return table(heads, rows)


def _dataset(found: Mapping[str, Any]) -> str:
    """Return the end of the dataset that was posted when the attack began."""
    dataset = found.get("dataset")
    return f"{dataset['state']}, {dataset['seconds']:.0f} s" if dataset else "–"


def _failures(shown: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [name, _counts(found["failures"])] for name, found in shown.items() if found["failures"]
    ]
    return table(["attack", "requests of the other owner"], rows) if rows else "Nothing."


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {number:,}" for name, number in sorted(counts.items()))


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
