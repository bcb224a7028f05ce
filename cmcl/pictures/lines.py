"""Lines over versions or updates: axes with round ticks, and a label at the end of each line; and sparklines."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cmcl.pictures.picture import WIDTH, Picture, Table
from cmcl.pictures.scales import (
    MINUS,
    Scale,
    decimals,
    nice_ticks,
    plain,
    segments,
    significant,
    spread,
    thinned,
    ticks_that_fit,
)
from cmcl.pictures.svg import SMALL, circle, clean, number, path, rectangle, text, text_width
from cmcl.pictures.theme import series

_LABEL = 16.0
_LEFT, _ABOVE, _BELOW = 64.0, 24.0, 24.0
# From the end of the plot to the text of a label, and the most that labels take of a picture.
_BEFORE_LABEL, _WIDEST_GUTTER = 30.0, 0.42


@dataclass(frozen=True)
class Line:
    """A line with its label: a note, then a name. None in a point is a gap; a thin one has no label.

    `place`: that of its colour among the series.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    note: str = ""
    place: int = 0
    is_thin: bool = False

    def draw(self, x: Scale, y: Scale) -> str:
        """Return the line. A point between two gaps is a dot."""
        runs, drawn, dots, most = segments(self.points), "", "", 20 if self.is_thin else 120
        for run in runs:
            seen = thinned(run, max(2, most * len(run) // len(self.points)))
            places = [f"{number(x(at))} {number(y(value))}" for at, value in seen]
            drawn += f"M{'L'.join(places)}" if len(run) > 1 else ""
            if len(run) == 1 and len(runs) < most:
                dots += circle((x(run[0][0]), y(run[0][1])), 3.0, self.colour)
        return (path(drawn, self.colour, 1 if self.is_thin else 2) if drawn else "") + dots

    @property
    def colour(self) -> str:
        """The name of its colour."""
        return "line" if self.is_thin else series(self.place)


def lines(  # noqa: PLR0913 - what is drawn, and how its axes look
    texts: tuple[str, str],
    drawn: Sequence[Line],
    axes: tuple[str, str],
    bound: tuple[float, str] | None = None,
    *,
    times: float = 1.0,
    reaches: Sequence[float] = (),
    width: float = WIDTH,
) -> Picture:
    """Draw lines. `texts`: title and description. `axes`: what x and y are called.

    `bound`: the largest permitted value, and its label; what is permitted is shaded, and points above it are triangles.
    `times`: what y is multiplied with, in ticks and in the table. `reaches`: values of y that the axis has in any case.
    """
    points = [point for each in drawn for run in segments(each.points) for point in run]
    xs = [x for x, _ in points] or [0.0]
    # Text, colour, and the point where the line ends.
    labels = [
        (f"{each.note} {clean(each.name)}".strip(), each.colour, segments(each.points)[-1][-1])
        for each in drawn
        if not each.is_thin and segments(each.points)
    ]
    if bound:
        labels.append((bound[1], "bad", (max(xs), bound[0])))
    height = max(240.0, _LABEL * len(labels))
    values = [*(y for _, y in points), *reaches, *([bound[0]] if bound else [])] or [0.0, 1.0]
    ticks = nice_ticks(min(values), max(values), 5)
    widest = max((text_width(label, SMALL) for label, _, _ in labels), default=0.0)
    gutter = min(widest + _BEFORE_LABEL + 4, _WIDEST_GUTTER * width)
    x = Scale(min(xs), max(xs), _LEFT, width - gutter)
    y = Scale(ticks[0], ticks[-1], _ABOVE + height, _ABOVE)
    body = _axes(axes, x, y, ticks, times)
    if bound:
        top = y(bound[0])
        band = rectangle((x.start, top), (x.end - x.start, y.start - top), "even")
        edge = path(f"M{number(x.start)} {number(top)}H{number(x.end)}", "bad", 2, dashes="2 5")
        body = band + body + edge
    # Thin lines lie below the others.
    body += "".join(each.draw(x, y) for each in sorted(drawn, key=lambda each: not each.is_thin))
    above = [(x(at), y(value)) for at, value in points if bound and value > bound[0]]
    if above:
        marks = "".join(f"M{number(at)} {number(place - 5)}l4 8h-8z" for at, place in above)
        body += path(marks, "bad", 2, "over the bound")
    left, room = x.end + _BEFORE_LABEL - 4, gutter - _BEFORE_LABEL
    places = spread([y(end[1]) for _, _, end in labels], _LABEL, y.end + 8, y.start - 8)
    for (label, colour, end), place in zip(labels, places, strict=True):
        leader = (
            f"M{number(x(end[0]) + 4)} {number(y(end[1]))}L{number(left - 12)} {number(place)}h8"
        )
        body += path(leader, colour, opacity="0.6")
        body += text((left, place + 4), label, room, size=SMALL)
    if not points:
        middle = ((x.start + x.end) / 2, (y.start + y.end) / 2 + 4)
        body += text(middle, "not measured yet", colour="muted", anchor="middle")
    table = _table(texts[0], drawn, axes[0], times, bound[0] if bound else math.inf)
    return Picture(*texts, table, width, _ABOVE + height + _BELOW, body)


def _table(
    caption: str, drawn: Sequence[Line], axis: str, times: float = 1.0, most: float = math.inf
) -> Table:
    def cell(y: float | None) -> str:
        is_over = y is not None and y > most
        return f"{significant(y and times * y)}{', over the bound' if is_over else ''}"

    values = [dict(each.points) for each in drawn]
    rows = [
        (_whole(x), *(cell(each.get(x)) for each in values))
        for x in sorted({x for each in values for x in each})
    ]
    return Table(caption, (axis, *(clean(each.name) for each in drawn)), rows)


def _axes(names: tuple[str, str], x: Scale, y: Scale, ticks: Sequence[float], times: float) -> str:
    grid = "".join(f"M{number(x.start)} {number(y(tick))}H{number(x.end)}" for tick in ticks)
    places = decimals(times * (ticks[1] - ticks[0]))
    body = path(grid, "grid") + path(
        f"M{number(x.start)} {number(y.start)}H{number(x.end)}", "line"
    )
    # Whole numbers of the range, and its end.
    inner = [at for at in nice_ticks(x.low, x.high, 10) if at == int(at) and x.low <= at <= x.high]
    xs = ticks_that_fit(inner or [x.low], _whole, x.end - x.start, SMALL)
    below = y.start + 17
    labels = [((x.start - 8, y(tick) + 4), plain(times * tick, places), "end") for tick in ticks]
    labels += [((x(at), below), _whole(at), "middle") for at in xs]
    labels += [((x.start - 44, y.end - 12), names[1], "start")]
    labels += [((x.start - 16, below), names[0], "end")]
    return body + "".join(
        text(at, says, size=SMALL, colour="muted", anchor=anchor) for at, says, anchor in labels
    )


def _whole(value: float) -> str:
    return f"{round(value):,}".replace("-", MINUS)


def sparkline(texts: tuple[str, str], values: Sequence[float | None]) -> Picture:
    """Draw a line as small as a word, with a dot at its newest value. `texts`: title and description."""
    width, height, line = (
        96.0,
        24.0,
        Line("", [(float(at), value) for at, value in enumerate(values)]),
    )
    known = [value for run in segments(line.points) for _, value in run]
    x = Scale(0, max(1, len(values) - 1), 4, width - 4)
    y = Scale(min(known, default=0.0), max(known, default=1.0), height - 4, 4)
    body = line.draw(x, y)
    for at, value in segments(line.points)[-1][-1:] if known else []:
        body += circle((x(at), y(value)), 2.5, line.colour)
    return Picture(*texts, _table(texts[0], [line], ""), width, height, body)
