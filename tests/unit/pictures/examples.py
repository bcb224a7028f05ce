"""Every picture of the library, made from names and numbers that a test chooses."""

import random
from collections.abc import Callable, Sequence
from itertools import combinations

from cmcl import pictures
from cmcl.contract.api.jobs import JobPhase
from cmcl.pictures import Memory, MemoryRow, Picture
from cmcl.pictures.picture import WIDTH

HOSTILE = (
    "</title><script>alert(1)</script>",
    "\" onload='alert(1)' x=\"&amp;]]><![CDATA[",
    "مجموعة بيانات \u202e טקסט",
    "👩‍👩‍👧‍👦🏳️‍🌈 emoji",
    "nul \x00 bell \x07 lone \ud800 \ufffe",
    "tab\tand\nnewline",
    "ẍ̧̤́̀ combining " * 3,
    "",
    "long " * 2000,
)


def memory(versions: int, names: Sequence[str], seed: int = 0) -> Memory:
    """Recall of datasets that arrive evenly over the versions and then wander."""
    source = random.Random(seed)
    arrives = [index * versions // max(1, len(names)) for index in range(len(names))]
    now = [source.uniform(0.3, 0.9) for _ in names]
    rows = []
    for version in range(versions):
        now = [min(1.0, max(0.0, each + source.gauss(-0.002, 0.01))) for each in now]
        recall = [
            share if version >= first else None for share, first in zip(now, arrives, strict=True)
        ]
        rows.append(MemoryRow(version + 1, names[-1] if names else "", recall))
    return Memory(names, rows)


def drift(names: Sequence[str], width: float = WIDTH) -> Picture:
    return pictures.drift_bars({name: 0.01 * i for i, name in enumerate(names)}, 0.05, width=width)


def changes(names: Sequence[str], width: float = WIDTH) -> Picture:
    rows = [
        pictures.RecallChange(name, None if i == 3 else 0.5, 0.4 + 0.01 * (i % 30))
        for i, name in enumerate(names)
    ]
    return pictures.recall_changes(rows, "version 7", "candidate", width=width)


def graph(names: Sequence[str], width: float = WIDTH) -> Picture:
    pairs = [
        pictures.Pair(first, second, (index % 90) / 100, emergent=index % 2 == 0, datasets=index)
        for index, (first, second) in enumerate(combinations(names[:12], 2))
    ]
    return pictures.modality_graph(pairs, names[:12], width=width)


def phases(names: Sequence[str], width: float = WIDTH) -> Picture:
    found = [
        JobPhase(phase=name, seconds=3.0**i, running=i == 8) for i, name in enumerate(names[:9])
    ]
    return pictures.job_phases(found, width=width)


def strip(names: Sequence[str], width: float = WIDTH) -> Picture:
    colours = ("good", "bad", "warn")
    lanes = {
        name: [pictures.Mark(5.0 * i + j, colours[j], name) for j in range(3)]
        for i, name in enumerate(names)
    }
    ticks = [(0.0, "yesterday"), (12.0, "12:00"), (24.0, "now")]
    return pictures.strip(("The last day", "What happened."), lanes, ticks, width=width)


def drifts(names: Sequence[str], width: float = WIDTH) -> Picture:
    found = {version: 0.01 * version for version in range(1, len(names) + 1)}
    return pictures.drift_curve(found, 0.05, width=width)


Draw = Callable[..., Picture]
# Pictures that show names of users: all kinds but the sparkline. Each takes names and a width.
WITH_NAMES: dict[str, Draw] = {
    "forgetting_matrix": lambda names, width=WIDTH: pictures.forgetting_matrix(
        memory(6, names), width=width
    ),
    "linked forgetting_matrix": lambda names, width=WIDTH: pictures.forgetting_matrix(
        memory(6, names), width=width, link=lambda row, dataset: f"{row}/{dataset}?a=1&b"
    ),
    "retention_curves": lambda names, width=WIDTH: pictures.retention_curves(
        memory(6, names), width=width
    ),
    "drift_bars": drift,
    "recall_changes": changes,
    "modality_graph": graph,
    "job_phases": phases,
    "strip": strip,
}
WITHOUT_NAMES: dict[str, Draw] = {
    "drift_curve": drifts,
}


NAMES = [f"{index:02}-a-name-of-forty-eight-characters-of-a-dataset" for index in range(100)]
# The largest that a page shows: 1,000 versions × 100 datasets, ten modalities.
LARGEST: dict[str, Callable[[], Picture]] = {
    "forgetting_matrix": lambda: pictures.forgetting_matrix(memory(1000, NAMES)),
    "dense forgetting_matrix": lambda: pictures.forgetting_matrix(_dense(40, NAMES[:20])),
    "retention_curves": lambda: pictures.retention_curves(memory(1000, NAMES)),
    "thin retention_curves": lambda: pictures.retention_curves(memory(1000, NAMES[:30])),
    "named retention_curves": lambda: pictures.retention_curves(memory(1000, NAMES[:10])),
    "drift_bars": lambda: drift(NAMES),
    "recall_changes": lambda: changes(NAMES),
    "modality_graph": lambda: graph(NAMES),
    "strip": lambda: strip(NAMES),
    "drift_curve": lambda: pictures.drift_curve({v: (v % 7) / 100 for v in range(1000)}, 0.05),
    "sparkline": lambda: pictures.sparkline(("recall", "of 1,000"), [v % 7 for v in range(1000)]),
}


def _dense(versions: int, names: Sequence[str]) -> Memory:
    """All datasets measured in all versions."""
    rows = [
        MemoryRow(v + 1, "x", [((v * 7 + s * 3) % 100) / 100 for s in range(len(names))])
        for v in range(versions)
    ]
    return Memory(names, rows)
