"""Two values of each dataset, joined by a line: loss against the best attainable, recall before and after."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cmcl.pictures.memory import NOTICEABLE
from cmcl.pictures.picture import WIDTH, Picture, Table
from cmcl.pictures.scales import (
    Scale,
    decimals,
    nice_ticks,
    percent,
    plain,
    points_of,
    significant,
    ticks_that_fit,
)
from cmcl.pictures.svg import (
    SMALL,
    brief,
    clean,
    element,
    group,
    key,
    line,
    named,
    number,
    text,
    text_width,
    title,
)
from cmcl.pictures.theme import fill, stroke

_ROW, _TOP, _GAP, _NOTE = 24.0, 26.0, 10.0, 60.0
_WIDEST_NAME = 200.0
# More datasets are summed up in words.
_MOST_ROWS = 24


@dataclass(frozen=True)
class Optimality:
    """The loss of a dataset in a version, and the lowest that heads of this width can reach on it."""

    name: str
    loss: float | None
    attainable: float | None


@dataclass(frozen=True)
class RecallChange:
    """Recall of a dataset before and after a change, 0 to 1; None: not measured."""

    name: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class _Dumbbell:
    """A ring at `start` and a circle at `end`, with what their titles say, and a note at the right."""

    name: str
    start: float | None
    end: float | None
    says: tuple[str, str]
    note: str = ""
    colour: str = "2"


def optimality_bars(rows: Sequence[Optimality], *, width: float = WIDTH) -> Picture:
    """Draw, by dataset, the loss now and the best attainable loss, the widest gap first."""
    in_order = sorted(
        rows, key=lambda row: _difference(row.attainable, row.loss) or 0.0, reverse=True
    )
    drawn = [
        _Dumbbell(
            row.name,
            row.attainable,
            row.loss,
            (f"best attainable {significant(row.attainable)}", f"loss now {significant(row.loss)}"),
        )
        for row in in_order
    ]
    words = ("best attainable", "loss now, lower is better")
    body, height = _draw(drawn, words, None, width)
    gaps = [
        (gap, row) for row in in_order if (gap := _difference(row.attainable, row.loss)) is not None
    ]
    says = "Lower is better."
    if gaps:
        says += f" Widest gap: {significant(gaps[0][0])}, {brief(gaps[0][1].name)}."
    table = Table(
        "Loss of each dataset now, and the best attainable",
        ("dataset", "loss now", "best attainable"),
        [(clean(row.name), significant(row.loss), significant(row.attainable)) for row in in_order],
    )
    heading = "Loss now against the best that heads of this width can reach"
    return Picture(heading, says, table, width, height, body)


def recall_changes(
    rows: Sequence[RecallChange],
    before: str = "before",
    after: str = "after",
    *,
    metric: str = "R@1",
    width: float = WIDTH,
) -> Picture:
    """Draw the recall of each dataset before and after, the largest loss first.

    `before`, `after`: what the two are, such as `version 7` and `candidate`.
    """
    in_order = sorted(rows, key=lambda row: _difference(row.before, row.after) or 0.0)
    drawn = [
        _Dumbbell(
            row.name,
            row.before,
            row.after,
            (f"{before}: {percent(row.before)} %", f"{after}: {percent(row.after)} %"),
            points_of(change),
            _colour(change),
        )
        for row in in_order
        for change in [_difference(row.before, row.after)]
    ]
    words = (before, f"{after}, {metric} in %; change in points")
    body, height = _draw(drawn, words, lambda value: percent(value, 0), width)
    changes = [
        (change, row)
        for row in in_order
        if (change := _difference(row.before, row.after)) is not None
    ]
    says = "No dataset was measured both before and after."
    if changes:
        change, row = changes[0]
        says = f"Lowest change: {points_of(change)} points, {brief(row.name)}."
    table = Table(
        f"{metric} of each dataset in %",
        ("dataset", clean(before), clean(after), "change (points)"),
        [
            (
                clean(row.name),
                percent(row.before),
                percent(row.after),
                points_of(_difference(row.before, row.after)),
            )
            for row in in_order
        ],
    )
    return Picture(
        f"{metric} of each dataset, {before} and {after}", says, table, width, height, body
    )


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _colour(change: float | None) -> str:
    if change is None or abs(change) < NOTICEABLE:
        return "line"
    return "good" if change > 0 else "bad"


def _draw(
    rows: Sequence[_Dumbbell],
    words: tuple[str, str],
    write: Callable[[float], str] | None,
    width: float,
) -> tuple[str, float]:
    """Return the dumbbells with an axis above and a key below, and the height.

    `write`: how values of the axis are written; None: as numbers.
    """
    shown = rows[:_MOST_ROWS]
    if not shown:
        return text((_GAP, _TOP - 4), "nothing to show yet", colour="muted"), _TOP + _GAP
    values = [each for row in rows for each in (row.start, row.end) if each is not None]
    ticks = nice_ticks(min(values, default=0.0), max(values, default=1.0), 5)
    names = max(text_width(clean(row.name)) for row in shown)
    left = min(_WIDEST_NAME, width / 3, names) + 3 * _GAP
    scale = Scale(ticks[0], ticks[-1], left, width - _NOTE - 2 * _GAP)
    end = _TOP + _ROW * len(shown)
    places = decimals(ticks[1] - ticks[0])
    body = [_axis(ticks, scale, end, write or (lambda value: plain(value, places)))]
    body += [_dumbbell(row, scale, _TOP + index * _ROW) for index, row in enumerate(shown)]
    if len(rows) > len(shown):
        more = f"{len(rows) - len(shown)} more"
        body.append(text((_GAP, end + 14), more, colour="muted", font_size=SMALL))
        end += 16
    colours = {row.colour for row in shown}
    colour = colours.pop() if len(colours) == 1 else "line"
    entries = (
        (lambda x, y: _ring((x, y)), words[0]),
        (lambda x, y: _circle((x, y), colour), words[1]),
    )
    marks, below = key(entries, _GAP, end + 6, width)
    return "".join(body) + marks, end + 6 + below


def _axis(ticks: Sequence[float], scale: Scale, end: float, write: Callable[[float], str]) -> str:
    lines = "".join(f"M{number(scale(tick))} {number(_TOP - 4)}V{number(end)}" for tick in ticks)
    fitting = ticks_that_fit(ticks, write, scale.end - scale.start, SMALL)
    labels = "".join(
        element("text", {"x": scale(tick), "y": _TOP - 10}, write(tick)) for tick in fitting
    )
    written = group(labels, {"text-anchor": "middle", "font-size": SMALL, **fill("muted")})
    return element("path", {"d": lines, **stroke("grid")}) + written


def _dumbbell(row: _Dumbbell, scale: Scale, y: float) -> str:
    middle = y + _ROW / 2
    edge = scale.start - 2 * _GAP
    drawn = named((edge, middle + 4), row.name, edge - _GAP / 2, anchor="end")
    if row.start is None and row.end is None:
        return drawn + text((scale.start, middle + 4), "not measured", colour="muted")
    if row.start is not None and row.end is not None:
        drawn += line((scale(row.start), middle), (scale(row.end), middle), row.colour, 3)
    name = brief(row.name)
    if row.start is not None:
        drawn += _ring((scale(row.start), middle), f"{name}, {row.says[0]}")
    if row.end is not None:
        drawn += _circle((scale(row.end), middle), row.colour, f"{name}, {row.says[1]}")
    return drawn + text((scale.end + _NOTE + _GAP, middle + 4), row.note, anchor="end")


def _ring(centre: tuple[float, float], says: str = "") -> str:
    inside, edge = fill("surface"), stroke("1", 2)
    both = {**edge, **inside, "class": f"{inside['class']} {edge['class']}"}
    where: dict[str, str | float] = {"cx": centre[0], "cy": centre[1], "r": 4.5}
    return element("circle", where | both, title(says) if says else "")


def _circle(centre: tuple[float, float], colour: str, says: str = "") -> str:
    where: dict[str, str | float] = {"cx": centre[0], "cy": centre[1], "r": 4.5}
    return element("circle", where | fill(colour), title(says) if says else "")
