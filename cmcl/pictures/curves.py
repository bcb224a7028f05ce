"""Curves over versions: capacity, drift, optimality; and the loss of a job over its updates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cmcl.pictures.picture import WIDTH, Picture, Rows, Table
from cmcl.pictures.plot import Axes, Band, Level, Line, Plot, draw
from cmcl.pictures.scales import counted, fine_percent, percent, segments, significant
from cmcl.pictures.svg import brief, clean, element, escape, number
from cmcl.pictures.theme import fill, series, stroke

# A head with a smaller free share counts as full.
FULL_BELOW = 0.1
# The forecast shows this many further datasets.
_AHEAD = 5


@dataclass(frozen=True)
class CapacityCurve:
    """Free share of a modality's head by version, 0 to 1.

    `taken_per_dataset`: the part of the free share that a further dataset is expected to take, 0 to 1;
    None: no forecast.
    """

    modality: str
    free: Mapping[int, float]
    datasets_left: int | None = None
    taken_per_dataset: float | None = None

    @property
    def forecast(self) -> dict[int, float]:
        """The free share after each of the next datasets of this modality, by version."""
        if self.taken_per_dataset is None or not self.free:
            return {}
        newest = max(self.free)
        kept = 1 - self.taken_per_dataset
        return {newest + n: self.free[newest] * kept**n for n in range(1, _AHEAD + 1)}


def capacity_curves(
    curves: Sequence[CapacityCurve], *, full_below: float = FULL_BELOW, width: float = WIDTH
) -> Picture:
    """Draw the free share of each modality's head over versions, and its forecast dotted.

    `full_below`: free share below which a head counts as full.
    """
    lines = []
    for place, curve in enumerate(curves):
        free = [(float(version), share) for version, share in sorted(curve.free.items())]
        ahead = [(float(v), share) for v, share in sorted(curve.forecast.items())]
        note = f"{percent(free[-1][1], 0)} % free" if free else ""
        if ahead:
            lines.append(Line("", free[-1:] + ahead, series(place), dashed=True, muted=True))
        lines.append(Line(curve.modality, free, series(place), note, _left(curve.datasets_left)))
    axes = Axes("version", "free share in %", 100.0, (0.0, 1.0))
    level = Level(full_below, f"full below {percent(full_below, 0)} %")
    body, height = draw(Plot(axes, lines, levels=[level]), width)
    notes = "; ".join(f"{brief(line.name)} {line.note}{line.more}" for line in lines if line.name)
    return Picture(
        "How much room is left for further datasets",
        f"Free share of each modality's head by version; dotted: forecast. {notes or 'No version yet'}.",
        _capacity_table(curves),
        width,
        height,
        body,
    )


def _left(datasets: int | None) -> str:
    if datasets is None:
        return ""
    return f", about {counted(datasets, 'dataset')} left" if datasets else ", full"


def _capacity_table(curves: Sequence[CapacityCurve]) -> Table:
    measured = {version for curve in curves for version in curve.free}
    ahead = [curve.forecast for curve in curves]
    versions = sorted(measured.union(*ahead))

    def cells(index: int) -> tuple[str, ...]:
        version = versions[index]
        found = (
            percent(curve.free.get(version, later.get(version)))
            for curve, later in zip(curves, ahead, strict=True)
        )
        return (f"{version}" if version in measured else f"{version} (forecast)", *found)

    headings = ("version", *(clean(curve.modality) for curve in curves))
    caption = "Free share of each modality's head in %, by version"
    return Table(caption, headings, Rows(len(versions), cells))


def drift_curve(
    drift: Mapping[int, float | None], bound: float | None = None, *, width: float = WIDTH
) -> Picture:
    """Draw the largest drift of an earlier dataset by version, against the bound of the gate."""
    points = [(float(version), value) for version, value in sorted(drift.items())]
    known = [value for _, value in points if value is not None]
    note = f"{fine_percent(known[-1])} %" if known else ""
    lines = [Line("largest drift", points, "accent", note)]
    limit = "" if bound is None else f"{significant(100 * bound)} %"
    levels = [] if bound is None else [Level(bound, f"bound {limit}")]
    axes = Axes("version", "change of scores in %", times=100, reaches=(0.0,))
    body, height = draw(Plot(axes, lines, levels=levels), width)
    rows = [(f"{version:.0f}", fine_percent(value)) for version, value in points]
    table = Table(
        "Largest drift of an earlier dataset since it was learned", ("version", "drift (%)"), rows
    )
    words = (
        f"Largest of all versions: {fine_percent(max(known))} %." if known else "Not measured yet."
    )
    if bound is not None:
        over = sum(value > bound for value in known)
        words += f" Bound: {limit}, exceeded in {over} of {len(known)} versions."
    return Picture("Largest drift by version", words, table, width, height, body)


def optimality_curve(
    by_version: Mapping[int, tuple[float | None, float | None]], *, width: float = WIDTH
) -> Picture:
    """Draw the loss now and the best attainable loss, as means over datasets, by version."""
    pairs = [(float(version), *both) for version, both in sorted(by_version.items())]
    now, best = [(v, loss) for v, loss, _ in pairs], [(v, low) for v, _, low in pairs]
    gap = [(v, low, loss) for v, loss, low in pairs if loss is not None and low is not None]
    lines = [
        Line("loss now", now, "2", significant(_last(now))),
        Line("best attainable", best, "1", significant(_last(best))),
    ]
    axes = Axes("version", "loss, lower is better")
    body, height = draw(Plot(axes, lines, [Band(gap, "2")] if gap else []), width)
    rows = [(f"{v:.0f}", significant(loss), significant(low)) for v, loss, low in pairs]
    words = "Mean over datasets. "
    if gap:
        words += f"Gap in the newest version: {significant(gap[-1][2] - gap[-1][1])}."
    table = Table("Mean loss by version", ("version", "loss now", "best attainable"), rows)
    title = "Loss now against the best that heads of this width can reach"
    return Picture(title, words.strip(), table, width, height, body)


def _last(points: Sequence[tuple[float, float | None]]) -> float | None:
    return next((value for _, value in reversed(points) if value is not None), None)


@dataclass(frozen=True)
class LossPoint:
    """A progress report of an attempt. `removed_share`: of the squared gradient, by protection, 0 to 1."""

    update: int
    loss: float | None
    removed_share: float | None = None


@dataclass(frozen=True)
class LossCurve:
    """The progress reports of an attempt, oldest first."""

    attempt: int
    points: Sequence[LossPoint]


def loss_curve(curves: Sequence[LossCurve], *, width: float = WIDTH) -> Picture:
    """Draw the loss of each attempt over its updates; below it the share of the gradient removed."""
    losses, removed = [], []
    for place, curve in enumerate(curves):
        name = f"attempt {curve.attempt}" if len(curves) > 1 else "loss"
        points = [(float(point.update), point.loss) for point in curve.points]
        losses.append(Line(name, points, series(place), significant(_last_finite(points))))
        shares = [(float(point.update), point.removed_share) for point in curve.points]
        note = f"{percent(_last_finite(shares), 0)} %"
        removed.append(Line(name if len(curves) > 1 else "removed", shares, series(place), note))
    updates = [float(point.update) for curve in curves for point in curve.points]
    x_range = (min(updates, default=0.0), max(updates, default=0.0))
    plots = [Plot(Axes("update", "loss"), losses, height=200, x_range=x_range)]
    if any(segments(line.points) for line in removed):
        axes = Axes("update", "removed share of the gradient in %", 100.0, (0.0, 1.0))
        plots.append(Plot(axes, removed, height=90, x_range=x_range))
    gutter = max(plot.gutter(width) for plot in plots)
    body, height = "", 0.0
    for plot in plots:
        drawn, taken = draw(
            Plot(plot.axes, plot.lines, height=plot.height, x_range=x_range, labels_width=gutter),
            width,
            height,
        )
        body, height = body + drawn, height + taken + 6
    return Picture(
        "Loss of the training", _loss_words(losses), _loss_table(curves), width, height, body
    )


def _last_finite(points: Sequence[tuple[float, float | None]]) -> float | None:
    runs = segments(points)
    return runs[-1][-1][1] if runs else None


def _loss_words(lines: Sequence[Line]) -> str:
    known = [
        f"{line.name} from {significant(runs[0][0][1])} to {significant(runs[-1][-1][1])}"
        for line in lines
        if (runs := segments(line.points))
    ]
    return f"{'; '.join(known).capitalize()}." if known else "No progress has been reported yet."


def _loss_table(curves: Sequence[LossCurve]) -> Table:
    rows = [
        (
            str(curve.attempt),
            f"{point.update:,}",
            significant(point.loss),
            percent(point.removed_share),
        )
        for curve in curves
        for point in curve.points
    ]
    headings = ("attempt", "update", "loss", "removed (%)")
    return Table("Progress reports of each attempt", headings, rows)


def sparkline(
    values: Sequence[float | None], label: str, *, width: float = 120, height: float = 24
) -> str:
    """Return a small `<svg>` of a line without axes. `label` is its accessible name."""
    runs = segments([(float(index), value) for index, value in enumerate(values)])
    known = [y for run in runs for _, y in run]
    low, high = min(known, default=0.0), max(known, default=1.0)
    across = (width - 6) / max(1, len(values) - 1)
    down = (height - 6) / (high - low) if high > low else 0.0
    paths = "".join(
        "M"
        + "L".join(
            f"{number(3 + x * across)} {number(height - 3 - (y - low) * down)}" for x, y in run
        )
        for run in runs
    )
    body = element("path", {"d": paths, **stroke("accent", 1.5)}) if paths else ""
    if runs:
        x, y = runs[-1][-1]
        where: dict[str, str | float] = {
            "cx": 3 + x * across,
            "cy": height - 3 - (y - low) * down,
            "r": 2.5,
        }
        body += element("circle", where | fill("accent"))
    attributes: dict[str, str | float] = {
        "xmlns": "http://www.w3.org/2000/svg",
        "class": "cmcl-picture",
        "role": "img",
        "width": width,
        "height": height,
        "viewBox": f"0 0 {width:g} {height:g}",
    }
    return element("svg", attributes, f"<title>{escape(clean(label))}</title>{body}")
