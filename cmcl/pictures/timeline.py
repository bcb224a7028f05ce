"""What happened one after the other: the versions of a model with its branches, the phases of a job."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from cmcl.contract.api.jobs import JobPhase
from cmcl.pictures.picture import WIDTH, Picture, Table
from cmcl.pictures.scales import MINUS, Scale, counted, percent
from cmcl.pictures.svg import (
    SMALL,
    brief,
    clean,
    cut,
    element,
    escape,
    group,
    isolated,
    key,
    line,
    named,
    number,
    rectangle,
    text,
    text_width,
    title,
)
from cmcl.pictures.theme import fill, series, stroke

_GAP = 10.0
# Height of the bar of phases, and the share of all from which a phase has a colour of its own.
_BAR, _SEEN = 26.0, 0.02
# The chain of versions: room for one, radius of its circle, and the height of its middle.
_SLOT, _RADIUS, _MIDDLE = 88.0, 17.0, 46.0
_BRANCHES_OFF = "↳ "
# How the circle of a version in a state is drawn: its colour, and whether it is filled.
_STATES = {
    "live": ("good", True),
    "held": ("warn", False),
    "retired": ("line", False),
}


@dataclass(frozen=True)
class ChainVersion:
    """A version of the chain. `state`: live, held, retired, or nothing of these.

    `unlearns`: it was made by unlearning the dataset.
    """

    version: int
    dataset: str
    state: str = ""
    unlearns: bool = False

    @property
    def learned(self) -> str:
        """What it learned, as a phrase."""
        return f"unlearned {self.dataset}" if self.unlearns else self.dataset


@dataclass(frozen=True)
class Branch:
    """A model that was made from the versions up to `version`."""

    model: str
    version: int


def version_chain(
    versions: Sequence[ChainVersion], branches: Sequence[Branch] = (), *, width: float = WIDTH
) -> Picture:
    """Draw versions from the oldest to the newest, what each learned, and where models branch off.

    Where the versions do not fit, those with a state, those with a branch and the newest are drawn, and
    the number of versions between them is said.
    """
    slots = max(3, int((width - 2 * _GAP) // _SLOT))
    shown = _chosen(versions, {branch.version for branch in branches}, slots)
    below: dict[int, list[str]] = {}
    for branch in branches:
        below.setdefault(branch.version, []).append(branch.model)
    body = []
    for place, index in enumerate(shown):
        x = _GAP + (place + 0.5) * _SLOT
        if place:
            body.append(_link(x, index - shown[place - 1] - 1))
        body.append(_node(versions[index], x))
        body.append(_branches(below.get(versions[index].version, []), x))
    deepest = max((min(len(models), 3) for models in below.values()), default=0)
    if not versions:
        body.append(text((_GAP, _MIDDLE + 4), "no version yet", colour="muted"))
    rows = [
        (
            str(each.version),
            clean(each.learned),
            clean(each.state),
            ", ".join(map(clean, below.get(each.version, []))),
        )
        for each in reversed(versions)
    ]
    headings = ("version", "learned", "state", "branches")
    table = Table("Versions, newest first", headings, rows, names=4)
    height = _MIDDLE + 46 + 16 * deepest
    return Picture(
        "Versions", _chain_words(versions, branches), table, width, height, "".join(body)
    )


def _chain_words(versions: Sequence[ChainVersion], branches: Sequence[Branch]) -> str:
    states = [f"version {each.version} is {clean(each.state)}" for each in versions if each.state]
    words = [counted(len(versions), "version"), *states[-4:]]
    unlearned = [each for each in versions if each.unlearns]
    words += [f"version {each.version} {brief(each.learned)}" for each in unlearned[-4:]]
    if branches:
        words.append(counted(len(branches), "branch"))
    return f"{'; '.join(words)}."


def _chosen(versions: Sequence[ChainVersion], branching: set[int], slots: int) -> list[int]:
    """Return the indices of the versions that are drawn, in order."""
    if len(versions) <= slots:
        return list(range(len(versions)))
    newest = len(versions) - 1
    wanted = [newest, 0]
    wanted += [i for i in range(newest, -1, -1) if versions[i].state not in ("", "retired")]
    wanted += [i for i in range(newest, -1, -1) if versions[i].version in branching]
    wanted += range(newest, -1, -1)
    return sorted(list(dict.fromkeys(wanted))[:slots])


def _link(x: float, between: int) -> str:
    """Return the line from the version before, with the number of versions that are not drawn."""
    start, end = x - _SLOT + _RADIUS, x - _RADIUS
    attributes = stroke("line", 2)
    if between:
        attributes["stroke-dasharray"] = "2 5"
    path = element("path", {"d": f"M{number(start)} {number(_MIDDLE)}H{number(end)}", **attributes})
    words = f"{between:,} more"
    middle = ((start + end) / 2, _MIDDLE - 6)
    return path + (
        text(middle, words, colour="muted", anchor="middle", font_size=10) if between else ""
    )


def _node(version: ChainVersion, x: float) -> str:
    colour, is_filled = _STATES.get(version.state, ("accent", False))
    inside, edge = fill(colour if is_filled else "surface"), stroke(colour, 2)
    both = {**edge, **inside, "class": f"{inside['class']} {edge['class']}"}
    where: dict[str, str | float] = {"cx": x, "cy": _MIDDLE, "r": _RADIUS}
    says = f"version {version.version}: {brief(version.learned)}"
    circle = element(
        "circle", where | both, title(f"{says}, {version.state}" if version.state else says)
    )
    count = text(
        (x, _MIDDLE + 4),
        str(version.version),
        colour="surface" if is_filled else "ink",
        anchor="middle",
        font_size=SMALL if version.version < 10_000 else 9,
        font_weight="600",
        pointer_events="none",
    )
    state = cut(version.state, _SLOT - 8, SMALL)
    above = text(
        (x, _MIDDLE - _RADIUS - 7), state, anchor="middle", font_size=SMALL, font_weight="600"
    )
    below = named(
        (x, _MIDDLE + _RADIUS + 16),
        version.dataset,
        _SLOT - 8,
        size=SMALL,
        colour="muted",
        anchor="middle",
        struck=version.unlearns,
    )
    return (
        circle
        + count
        + (_minus(x, edge) if version.unlearns else "")
        + (above if state else "")
        + below
    )


def _minus(x: float, edge: dict[str, str]) -> str:
    """Return the mark of a version that unlearned a dataset: a minus at the edge of its circle."""
    at = (x + 0.75 * _RADIUS, _MIDDLE - 0.75 * _RADIUS)
    inside = fill("surface")
    both = {**edge, **inside, "class": f"{inside['class']} {edge['class']}"}
    where: dict[str, str | float] = {"cx": at[0], "cy": at[1], "r": 7.0}
    disc = element("circle", where | both)
    return disc + line((at[0] - 3.5, at[1]), (at[0] + 3.5, at[1]), "ink", 2)


def _branches(models: Sequence[str], x: float) -> str:
    """Return the models that branch off, below each other; the third line says how many more."""
    shown = list(models[:3]) if len(models) <= 3 else [*models[:2], f"{len(models) - 2} more"]
    rows = []
    for place, name in enumerate(shown):
        fitting = cut(name, _SLOT - 4 - text_width(_BRANCHES_OFF, SMALL), SMALL)
        whole = "" if fitting == clean(name) else title(name)
        at: dict[str, str | float] = {"x": x, "y": _MIDDLE + _RADIUS + 32 + 16 * place}
        rows.append(element("text", at, escape(_BRANCHES_OFF + isolated(fitting)) + whole))
    shared: dict[str, str | float] = {
        "font-style": "italic",
        "font-size": SMALL,
        "text-anchor": "middle",
    }
    return group("".join(rows), shared | fill("ink"))


def job_phases(phases: Sequence[JobPhase], *, width: float = WIDTH) -> Picture:
    """Draw the phases of a job as one bar, each as long as it took, with a key of those that took long enough."""
    total = sum(phase.seconds for phase in phases)
    scale = Scale(0.0, total or 1.0, _GAP, width - _GAP)
    body, start = [], 0.0
    entries = list[tuple[Callable[[float, float], str], str]]()
    for phase in phases:
        end = start + phase.seconds
        wide = scale(end) - scale(start)
        is_seen = phase.running or phase.seconds > _SEEN * total
        colour = "warn" if phase.running else series(len(entries)) if is_seen else "line"
        # A gap of a pixel between two, as far as there is room.
        size = (max(1.0, wide - 1), _BAR)
        words = title(f"{clean(phase.phase)}: {_taken(phase)}")
        body.append(group(rectangle((scale(start), _GAP), size, colour) + words, {}))
        if is_seen:
            entries.append((partial(_swatch, colour=colour), phase.phase))
        start = end
    drawn, height = key(entries, _GAP, 2 * _GAP + _BAR, width)
    if not phases:
        body = [text((_GAP, 24), "not started yet", colour="muted")]
    table = Table(
        "Time in each phase",
        ("phase", "seconds", "share (%)"),
        [
            (
                clean(phase.phase) + (" (running)" if phase.running else ""),
                f"{phase.seconds:.1f}",
                percent(phase.seconds / total if total else None),
            )
            for phase in phases
        ],
    )
    return Picture(
        "Where the time of the job went",
        _phase_words(phases, total),
        table,
        width,
        2 * _GAP + _BAR + height,
        "".join([*body, drawn]),
    )


def _phase_words(phases: Sequence[JobPhase], total: float) -> str:
    if not phases:
        return "The job has not started."
    longest = sorted(phases, key=lambda phase: -phase.seconds)[:3]
    named_phases = ", ".join(f"{brief(phase.phase)} {_taken(phase)}" for phase in longest)
    return f"{duration(total)} in all; the longest: {named_phases}."


def _swatch(x: float, y: float, colour: str) -> str:
    return rectangle((x - 6, y - 5), (12, 10), colour, 2)


def _taken(phase: JobPhase) -> str:
    return duration(phase.seconds) + (" so far" if phase.running else "")


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: `850 ms`, `12.3 s`, `4 min 10 s`, `3 h 5 min`."""
    sign, seconds = (MINUS, -seconds) if seconds < 0 else ("", seconds)
    if seconds < 1:
        return f"{sign}{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{sign}{seconds:.1f} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    whole = round(seconds)
    for (large, size), (small, part) in pairwise(units):
        if whole >= size:
            rest = whole % size // part
            return f"{sign}{whole // size} {large}" + (f" {rest} {small}" if rest else "")
    return f"{sign}{whole} s"
