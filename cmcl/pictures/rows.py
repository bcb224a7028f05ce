"""A row for each name: bars against a bound, dumbbells of two values, and strips of what happened when."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cmcl.pictures.matrix import NOTICEABLE
from cmcl.pictures.picture import WIDTH, Picture, Table
from cmcl.pictures.scales import Scale, nice_ticks, percent, points_of, ticks_that_fit
from cmcl.pictures.svg import (
    SMALL,
    brief,
    circle,
    clean,
    number,
    path,
    rectangle,
    text,
    text_width,
)

_ROW, _TOP, _GAP = 24.0, 26.0, 10.0
_WIDEST_NAME = 200.0
# More rows are in the table alone.
_MOST_ROWS = 24


@dataclass(frozen=True)
class Bar:
    """A bar, and the text after it; None: not measured."""

    name: str
    value: float | None
    says: str


@dataclass(frozen=True)
class RecallChange:
    """Recall of a dataset before and after a change, 0 to 1; None: not measured."""

    name: str
    before: float | None
    after: float | None

    @property
    def change(self) -> float | None:
        """After less before; None without both."""
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True)
class Mark:
    """Something that happened: when, its colour (`good`, `warn`, `bad`, `accent`), and what, in words."""

    at: float
    colour: str
    says: str


def bars(
    texts: tuple[str, str],
    rows: Sequence[Bar],
    bound: tuple[float, str] | None = None,
    *,
    unit: str = "value",
    width: float = WIDTH,
) -> Picture:
    """Draw bars from 0 in the order given. `texts`: title and description. `bound`: the largest permitted value, and its label."""
    values = [row.value for row in rows if row.value is not None] + ([bound[0]] if bound else [])
    high = nice_ticks(0.0, max(values, default=0.0), 4)[-1]
    over = {row.name for row in rows if bound and (row.value or 0.0) > bound[0]}
    says = [row.says + (", over the bound" if row.name in over else "") for row in rows]
    room = min(width / 2, max(map(text_width, says[:_MOST_ROWS]), default=0.0))
    body, scale, end = _frame([row.name for row in rows], (0.0, high), room, width)
    line = scale(bound[0]) if bound else -1.0
    for place, row in enumerate(rows[:_MOST_ROWS]):
        y, x, is_over = _TOP + place * _ROW, scale(row.value or 0.0), row.name in over
        size = (max(1.0, x - scale.start), _ROW - 10)
        body += rectangle((scale.start, y + 5), size, "bad" if is_over else "accent", 1)
        # The line of the bound does not run through the text, where there is room behind it.
        wide = text_width(says[place])
        if x < line < x + wide + 10 and line + wide + 10 < width:
            x = line
        body += text(
            (x + 6, y + _ROW / 2 + 4), says[place], width - x - 10, weight="600" if is_over else ""
        )
    if bound and rows:
        half = text_width(bound[1], SMALL) / 2
        drawn = f"M{number(line)} {number(_TOP - 6)}V{number(end)}"
        body += path(drawn, "bad", 1.5, dashes="6 3")
        at = (max(half + 4, min(line, width - half - 4)), _TOP - 10)
        body += text(at, bound[1], size=SMALL, colour="muted", anchor="middle")
    table = Table(texts[0], ("name", unit), [(clean(row.name), clean(row.says)) for row in rows])
    return Picture(*texts, table, width, end + _GAP, body)


def dumbbells(
    texts: tuple[str, str],
    rows: Sequence[RecallChange],
    labels: tuple[str, str],
    *,
    width: float = WIDTH,
) -> Picture:
    """Draw recall before (a ring) and after (a disc) of each name, in the order given.

    `texts`: title and description. `labels`: what the two are.
    """
    values = [each for row in rows for each in (row.before, row.after) if each is not None]
    ticks = nice_ticks(min(values, default=0.0), max(values, default=1.0), 5)
    body, scale, end = _frame([row.name for row in rows], (ticks[0], ticks[-1]), 50.0, width)
    if rows:
        body = _axis([(tick, percent(tick, 0)) for tick in ticks], scale, end) + body
        at, end = (_GAP, end + 14), end + 14
        says = f"○ {clean(labels[0])}  ● {clean(labels[1])}, in %; change in points"
        body += text(at, says, width - 2 * _GAP, size=SMALL, colour="muted")
    for place, row in enumerate(rows[:_MOST_ROWS]):
        y, change = _TOP + (place + 0.5) * _ROW, row.change or 0.0
        colour = "line" if abs(change) < NOTICEABLE else "good" if change > 0 else "bad"
        if row.before is not None and row.after is not None:
            ends = f"M{number(scale(row.before))} {number(y)}H{number(scale(row.after))}"
            body += path(ends, colour, 3)
        for value, label, is_ring in ((row.before, labels[0], True), (row.after, labels[1], False)):
            if value is not None:
                says = f"{brief(row.name)}, {label}: {percent(value)} %"
                look = "1" if is_ring else colour
                body += circle((scale(value), y), 4.5, look, says, is_ring=is_ring)
        body += text((width - _GAP, y + 4), points_of(row.change), anchor="end")
    cells = [
        (clean(row.name), percent(row.before), percent(row.after), points_of(row.change))
        for row in rows
    ]
    headings = ("dataset", *map(clean, labels), "change (points)")
    return Picture(*texts, Table(texts[0], headings, cells), width, end + _GAP, body)


def strip(
    texts: tuple[str, str],
    lanes: Mapping[str, Sequence[Mark]],
    ticks: Sequence[tuple[float, str]],
    *,
    width: float = WIDTH,
) -> Picture:
    """Draw what happened to each name on one axis: a disc if it is good, else a ring.

    `texts`: title and description. `ticks`: places with their labels; the first and the last are the ends.
    """
    body, scale, end = _frame(list(lanes), (ticks[0][0], ticks[-1][0]), 16.0, width)
    body = _axis(ticks, scale, end) + body
    for place, (name, marks) in enumerate(list(lanes.items())[:_MOST_ROWS]):
        y = _TOP + (place + 0.5) * _ROW
        body += path(f"M{number(scale.start)} {number(y)}H{number(scale.end)}", "line")
        for mark in marks:
            says, is_ring = f"{brief(name)}: {mark.says}", mark.colour != "good"
            body += circle((scale(mark.at), y), 5.0, mark.colour, says, is_ring=is_ring)
    rows = [(clean(name), clean(mark.says)) for name, marks in lanes.items() for mark in marks]
    return Picture(*texts, Table(texts[0], ("name", "what"), rows, 2), width, end + _GAP, body)


def _frame(
    names: Sequence[str], ends: tuple[float, float], room: float, width: float
) -> tuple[str, Scale, float]:
    """Return the names of the rows, the scale beside them, and where the rows end. `room`: what is kept at the right."""
    shown, end = names[:_MOST_ROWS], _TOP + _ROW * min(len(names), _MOST_ROWS)
    widest = max((text_width(clean(name)) for name in shown), default=0.0)
    left = min(_WIDEST_NAME, width / 3, widest) + 2 * _GAP
    scale = Scale(*ends, left, max(left + 60, width - room - 2 * _GAP))
    body = "".join(
        text((left - _GAP, _TOP + (place + 0.5) * _ROW + 4), name, left - 1.5 * _GAP, anchor="end")
        for place, name in enumerate(shown)
    )
    if not names:
        return text((_GAP, end - 4), "nothing to show yet", colour="muted"), scale, end
    if len(names) > len(shown):
        more = f"{len(names) - len(shown)} more"
        body, end = body + text((_GAP, end + 14), more, size=SMALL, colour="muted"), end + 16
    return body, scale, end


def _axis(ticks: Sequence[tuple[float, str]], scale: Scale, end: float) -> str:
    written = dict(ticks)
    fitting = ticks_that_fit(list(written), written.__getitem__, scale.end - scale.start, SMALL)
    grid = "".join(f"M{number(scale(at))} {number(_TOP - 4)}V{number(end)}" for at in fitting)
    return path(grid, "grid") + "".join(
        text((scale(at), _TOP - 10), written[at], size=SMALL, colour="muted", anchor="middle")
        for at in fitting
    )
