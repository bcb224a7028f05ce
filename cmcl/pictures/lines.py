"""Lines over versions or updates: axes with round ticks, and a label at the end of each line; and sparklines."""

from collections.abc import Sequence
from dataclasses import dataclass

from cmcl.pictures.picture import WIDTH, Picture, Table
from cmcl.pictures.scales import (
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
from cmcl.pictures.svg import SMALL, circle, clean, number, path, text, text_width
from cmcl.pictures.theme import series

_LABEL = 16.0
_LEFT, _ABOVE, _BELOW = 64.0, 24.0, 24.0
# From the end of the plot to the text of a label, and the most that labels take of a picture.
_BEFORE_LABEL, _WIDEST_GUTTER = 30.0, 0.42


@dataclass(frozen=True)
class Line:
    """A line with its label: a note, then a name. None in a point is a gap; thin and dashed ones have no label.

    `place`: that of its colour among the series; None: that of bounds.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    note: str = ""
    place: int | None = 0
    is_dashed: bool = False
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
        dashes = "2 5" if self.is_dashed else ""
        thick = 1 if self.is_thin else 2
        return (path(drawn, self.colour, thick, dashes=dashes) if drawn else "") + dots

    @property
    def has_label(self) -> bool:
        """Whether its name is written beside it: a forecast continues a line that has one."""
        return not self.is_thin and (self.place is None or not self.is_dashed)

    @property
    def colour(self) -> str:
        """The name of its colour."""
        if self.is_thin:
            return "line"
        return "bad" if self.place is None else series(self.place)


def lines(
    texts: tuple[str, str],
    drawn: Sequence[Line],
    axes: tuple[str, str],
    *,
    times: float = 1.0,
    reaches: Sequence[float] = (),
    width: float = WIDTH,
) -> Picture:
    """Draw lines. `texts`: title and description. `axes`: what x and y are called.

    `times`: what y is multiplied with, in ticks and in the table. `reaches`: values of y that the axis has in any case.
    """
    points = [point for each in drawn for run in segments(each.points) for point in run]
    labelled = [each for each in drawn if each.has_label and segments(each.points)]
    height = max(240.0, _LABEL * len(labelled))
    values = [*(y for _, y in points), *reaches] or [0.0, 1.0]
    ticks = nice_ticks(min(values), max(values), 5)
    labels = [f"{each.note} {clean(each.name)}".strip() for each in labelled]
    widest = max((text_width(label, SMALL) for label in labels), default=0.0)
    gutter = min(widest + _BEFORE_LABEL + 4, _WIDEST_GUTTER * width)
    xs = [x for x, _ in points] or [0.0]
    x = Scale(min(xs), max(xs), _LEFT, width - gutter)
    y = Scale(ticks[0], ticks[-1], _ABOVE + height, _ABOVE)
    body = _axes(axes, x, y, ticks, times)
    # Thin lines lie below the others.
    body += "".join(each.draw(x, y) for each in sorted(drawn, key=lambda each: not each.is_thin))
    left, room = x.end + _BEFORE_LABEL - 4, gutter - _BEFORE_LABEL
    ends = [segments(each.points)[-1][-1] for each in labelled]
    places = spread([y(end[1]) for end in ends], _LABEL, y.end + 8, y.start - 8)
    for each, label, end, place in zip(labelled, labels, ends, places, strict=True):
        leader = (
            f"M{number(x(end[0]) + 4)} {number(y(end[1]))}L{number(left - 12)} {number(place)}h8"
        )
        body += path(leader, each.colour, opacity="0.6")
        body += text((left, place + 4), label, room, size=SMALL)
    if not points:
        middle = ((x.start + x.end) / 2, (y.start + y.end) / 2 + 4)
        body += text(middle, "not measured yet", colour="muted", anchor="middle")
    table = _table(texts[0], drawn, axes[0], times)
    return Picture(*texts, table, width, _ABOVE + height + _BELOW, body)


def _table(caption: str, drawn: Sequence[Line], axis: str, times: float) -> Table:
    columns = [each for each in drawn if each.place is not None]
    values = [dict(each.points) for each in columns]
    rows = [
        (
            _whole(x),
            *(significant(None if (y := each.get(x)) is None else times * y) for each in values),
        )
        for x in sorted({x for each in values for x in each})
    ]
    return Table(caption, (axis, *(clean(each.name) for each in columns)), rows)


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
    return f"{value:,.0f}"


def sparkline(
    texts: tuple[str, str], values: Sequence[float | None], size: tuple[float, float] = (96, 24)
) -> Picture:
    """Draw a line as small as a word, with a dot at its newest value. `texts`: title and description."""
    (width, height), line = size, Line("", [(float(at), value) for at, value in enumerate(values)])
    known = [value for run in segments(line.points) for _, value in run]
    x = Scale(0, max(1, len(values) - 1), 4, width - 4)
    y = Scale(min(known, default=0.0), max(known, default=1.0), height - 4, 4)
    body = line.draw(x, y)
    for at, value in segments(line.points)[-1][-1:] if known else []:
        body += circle((x(at), y(value)), 2.5, line.colour)
    return Picture(*texts, _table(texts[0], [line], "", 1.0), width, height, body)
