"""Lines over versions or updates: axes with round ticks, and a label at the end of each line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cmcl.pictures.scales import (
    Point,
    Scale,
    decimals,
    nice_ticks,
    plain,
    segments,
    spread,
    thinned,
    ticks_that_fit,
    whole_ticks,
)
from cmcl.pictures.svg import (
    SMALL,
    clean,
    cut,
    element,
    escape,
    group,
    isolated,
    line,
    number,
    text,
    text_width,
    title,
)
from cmcl.pictures.theme import fill, stroke

LABEL_HEIGHT = 16.0
_LEFT, _ABOVE, _BELOW = 64.0, 24.0, 24.0
_WIDEST_NAME, _SHORTEST_NAME, _SWATCH = 150.0, 40.0, 14.0
# From the end of the plot to the text of a label, and the most that labels take of a picture.
_BEFORE_LABEL, _WIDEST_GUTTER = _SWATCH + 16, 0.48
# A plot with more points has no dots with titles, which take about 120 bytes each.
_MOST_DOTS = 120
_TICKS = 10


@dataclass(frozen=True)
class Line:
    """A line with its label: a name of a user, and a note of ours after it. None in a point is a gap.

    `more` follows the note where there is room. `says` turns a point into the text of its title; a muted
    line has neither label nor dots.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: str
    note: str = ""
    more: str = ""
    dashed: bool = False
    muted: bool = False
    says: Callable[[float, float], str] | None = None


@dataclass(frozen=True)
class Band:
    """An area between two values at each x."""

    points: Sequence[tuple[float, float, float]]
    colour: str
    opacity: float = 0.15


@dataclass(frozen=True)
class Level:
    """A line across the plot, such as a bound, with its label."""

    value: float
    label: str
    colour: str = "bad"


@dataclass(frozen=True)
class Axes:
    """What the axes are called, what y is multiplied with for its ticks, and values that y reaches at least."""

    x: str
    y: str
    times: float = 1.0
    reaches: tuple[float, ...] = ()


@dataclass(frozen=True)
class Plot:
    """Lines, bands and levels with common axes."""

    axes: Axes
    lines: Sequence[Line]
    bands: Sequence[Band] = ()
    levels: Sequence[Level] = ()
    height: float = 240.0
    # Range of x, where several plots above each other have one axis.
    x_range: tuple[float, float] | None = None
    # Width of the labels at the right, likewise.
    labels_width: float | None = None

    def gutter(self, width: float) -> float:
        """Return the width that the labels take in a picture of that width: less than half of it."""
        if self.labels_width is not None:
            return self.labels_width
        widths = [_label_width(each) for each in self.lines if not each.muted]
        widths += [text_width(each.label, SMALL) for each in self.levels]
        return min(max(widths, default=0.0) + _BEFORE_LABEL + 4, _WIDEST_GUTTER * width)


def draw(plot: Plot, width: float, top: float = 0.0) -> tuple[str, float]:
    """Return the markup of a plot whose top is at `top`, and its height with axes."""
    labelled = sum(not each.muted for each in plot.lines) + len(plot.levels)
    height = max(plot.height, labelled * LABEL_HEIGHT)
    x, y, y_ticks = _scales(plot, width, (top + _ABOVE, height))
    body = [
        _y_axis(plot.axes, x, y, y_ticks),
        _x_axis(plot.axes, x, y),
        *(_band(each, x, y) for each in plot.bands),
        *(_level(each, x, y) for each in plot.levels),
        # Muted lines lie below the others.
        *(_path(each, x, y) for each in sorted(plot.lines, key=lambda each: not each.muted)),
        _dots(plot.lines, x, y),
        _labels(plot, x, y, width),
    ]
    if not any(segments(each.points) for each in plot.lines):
        middle = ((x.start + x.end) / 2, (y.start + y.end) / 2 + 4)
        body.append(text(middle, "not measured yet", colour="muted", anchor="middle"))
    return "".join(body), _ABOVE + height + _BELOW


def _scales(
    plot: Plot, width: float, vertical: tuple[float, float]
) -> tuple[Scale, Scale, list[float]]:
    points = [point for each in plot.lines for run in segments(each.points) for point in run]
    low, high = plot.x_range or (
        min((x for x, _ in points), default=0.0),
        max((x for x, _ in points), default=0.0),
    )
    found = [y for _, y in points] + [each.value for each in plot.levels]
    found += [y for each in plot.bands for _, *both in each.points for y in both]
    found += plot.axes.reaches
    top, height = vertical
    count = max(2, round(height / 50))
    ticks = nice_ticks(min(found, default=0.0), max(found, default=1.0), count)
    x = Scale(low, high, _LEFT, width - plot.gutter(width))
    return x, Scale(ticks[0], ticks[-1], top + height, top), ticks


def _y_axis(axes: Axes, x: Scale, y: Scale, ticks: Sequence[float]) -> str:
    lines = "".join(f"M{number(x.start)} {number(y(tick))}H{number(x.end)}" for tick in ticks)
    places = decimals(axes.times * (ticks[1] - ticks[0]))
    written = [plain(axes.times * tick, places) for tick in ticks]
    labels = "".join(
        element("text", {"x": x.start - 8, "y": y(tick) + 4}, escape(label))
        for tick, label in zip(ticks, written, strict=True)
    )
    name = text((x.start - 44, y.end - 12), axes.y, colour="muted", font_size=SMALL)
    grid = element("path", {"d": lines, **stroke("grid")})
    return grid + name + group(labels, {"text-anchor": "end", "font-size": SMALL, **fill("muted")})


def _x_axis(axes: Axes, x: Scale, y: Scale) -> str:
    ticks: list[float] = [float(each) for each in whole_ticks(int(x.low), int(x.high), _TICKS)]
    ticks = ticks_that_fit(ticks, _whole, x.end - x.start, SMALL)
    below = y.start + 17
    labels = "".join(element("text", {"x": x(tick), "y": below}, _whole(tick)) for tick in ticks)
    name = text((x.start - 12, below), axes.x, colour="muted", anchor="end", font_size=SMALL)
    base = line((x.start, y.start), (x.end, y.start), "line")
    return (
        base + name + group(labels, {"text-anchor": "middle", "font-size": SMALL, **fill("muted")})
    )


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _path(each: Line, x: Scale, y: Scale) -> str:
    """Return a line. A point between two gaps is a dot."""
    drawn, alone = [], []
    runs = segments(each.points)
    for run in runs:
        if len(run) == 1:
            alone.append(run[0])
            continue
        seen = thinned(run, max(2, (40 if each.muted else 120) * len(run) // sum(map(len, runs))))
        path = "L".join(f"{number(x(at))} {number(y(value))}" for at, value in seen)
        drawn.append(f"M{path}")
    attributes = stroke(each.colour, 1 if each.muted else 2)
    attributes |= {"stroke-linejoin": "round", "stroke-linecap": "round"}
    if each.dashed:
        attributes["stroke-dasharray"] = "2 5"
    lines = element("path", {"d": "".join(drawn), **attributes}) if drawn else ""
    return lines + "".join(_dot(at, each.colour, x, y) for at in alone[:_MOST_DOTS])


def _dot(point: Point, colour: str, x: Scale, y: Scale, says: str = "") -> str:
    where: dict[str, str | float] = {"cx": x(point[0]), "cy": y(point[1]), "r": 3.0}
    return element("circle", where | fill(colour), title(says) if says else "")


def _dots(lines: Sequence[Line], x: Scale, y: Scale) -> str:
    """Return a dot with a title at every point, or at the first one alone where there are many."""
    shown = [each for each in lines if each.says and not each.muted]
    points = {id(each): [p for run in segments(each.points) for p in run] for each in shown}
    are_few = sum(map(len, points.values())) <= _MOST_DOTS
    return "".join(
        _dot(point, each.colour, x, y, each.says(*point))
        for each in shown
        for point in (points[id(each)] if are_few else points[id(each)][:1])
        if each.says
    )


def _band(band: Band, x: Scale, y: Scale) -> str:
    if len(band.points) < 2:
        return ""
    above = thinned([(at, high) for at, _, high in band.points], 80)
    below = thinned([(at, low) for at, low, _ in band.points], 80)
    outline = "L".join(
        f"{number(x(at))} {number(y(value))}" for at, value in [*above, *below[::-1]]
    )
    return element(
        "path", {"d": f"M{outline}Z", **fill(band.colour), "fill-opacity": f"{band.opacity:g}"}
    )


def _level(level: Level, x: Scale, y: Scale) -> str:
    path = f"M{number(x.start)} {number(y(level.value))}H{number(x.end)}"
    return element("path", {"d": path, **stroke(level.colour, 1.5), "stroke-dasharray": "6 3"})


@dataclass(frozen=True)
class _Label:
    """A label at the right: where its line ends, how the line looks, and what stands there."""

    end: Point
    colour: str
    dashed: bool
    content: str = field(repr=False)


def _labels(plot: Plot, x: Scale, y: Scale, width: float) -> str:
    """Return the labels at the ends of lines, moved up and down until none overlaps another."""
    room = width - x.end - _BEFORE_LABEL
    labels = [
        _of_line(each, x, y, room)
        for each in plot.lines
        if not each.muted and segments(each.points)
    ]
    labels += [_of_level(each, x, y, room) for each in plot.levels]
    places = spread(
        [label.end[1] for label in labels],
        [LABEL_HEIGHT] * len(labels),
        y.end - LABEL_HEIGHT / 2,
        y.start + LABEL_HEIGHT / 2,
    )
    left = x.end + 12
    return "".join(
        _leader(label, (left, place)) + f'<g transform="translate({number(left + _SWATCH + 4)} '
        f'{number(place + 4)})">{label.content}</g>'
        for label, place in zip(labels, places, strict=True)
    )


def _leader(label: _Label, to: Point) -> str:
    """Return the line from the end of a line to the swatch of its label."""
    (x, y), (left, place) = label.end, to
    attributes = stroke(label.colour, 2)
    if label.dashed:
        attributes["stroke-dasharray"] = "2 5"
    swatch = f"M{number(left + 4)} {number(place)}h{number(_SWATCH - 4)}"
    thin = f"M{number(x + 4)} {number(y)}L{number(left + 2)} {number(place)}"
    quiet = {**stroke(label.colour), "stroke-opacity": "0.45"}
    return element("path", {"d": thin, **quiet}) + element("path", {"d": swatch, **attributes})


def _of_line(each: Line, x: Scale, y: Scale, room: float) -> _Label:
    last = segments(each.points)[-1][-1]
    whole = clean(each.name)
    note = _note(each, room)
    shown = cut(whole, min(_WIDEST_NAME, room - text_width(note, SMALL)), SMALL)
    content = element(
        "text",
        {"font-size": SMALL, **fill("ink")},
        escape(isolated(shown)) + escape(note) + (title(whole) if shown != whole else ""),
    )
    return _Label((x(last[0]), y(last[1])), each.colour, each.dashed, content)


def _note(each: Line, room: float) -> str:
    """Return as much of a note as leaves room for some of the name."""
    name = min(_SHORTEST_NAME, text_width(clean(each.name), SMALL))
    for note in (f" {each.note}{each.more}", f" {each.note}"):
        if name + text_width(note, SMALL) <= room:
            return note.rstrip()
    return ""


def _of_level(level: Level, x: Scale, y: Scale, room: float) -> _Label:
    shown = cut(level.label, room, SMALL)
    whole = title(level.label) if shown != level.label else ""
    words = element("text", {"font-size": SMALL, **fill("muted")}, escape(shown) + whole)
    return _Label((x.end - 4, y(level.value)), level.colour, dashed=True, content=words)


def _label_width(each: Line) -> float:
    name = text_width(cut(clean(each.name), _WIDEST_NAME, SMALL), SMALL)
    return name + text_width(f" {each.note}{each.more}", SMALL)
