"""Curves over versions: capacity, drift, optimality; and the loss of a job over its updates."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cmcl.contract.api.jobs import ProgressHistory
from cmcl.contract.api.versions import ModalityCapacity, ModelCapacity
from cmcl.pictures.picture import WIDTH, Picture, Rows, Table
from cmcl.pictures.plot import Axes, Band, Level, Line, Plot, draw
from cmcl.pictures.scales import counted, fine_percent, percent, segments, significant
from cmcl.pictures.svg import brief, clean
from cmcl.pictures.theme import series

# The forecast shows this many further datasets.
_AHEAD = 5


def capacity_curves(capacity: ModelCapacity, *, width: float = WIDTH) -> Picture:
    """Draw the free share of each modality's head over versions, and its forecast dotted."""
    lines = []
    for place, (name, head) in enumerate(capacity.modalities.items()):
        free = [(float(each.version), each.free_share) for each in head.history]
        ahead = [(float(v), share) for v, share in _forecast(head).items()]
        note = f"{percent(free[-1][1], 0)} % free" if free else ""
        if ahead:
            lines.append(Line("", free[-1:] + ahead, series(place), dashed=True, muted=True))
        lines.append(Line(name, free, series(place), note, _left(head.datasets_left)))
    axes = Axes("version", "free share in %", 100.0, (0.0, 1.0))
    full = capacity.full_below
    level = Level(full, f"full below {percent(full, 0)} %")
    body, height = draw(Plot(axes, lines, levels=[level]), width)
    notes = "; ".join(f"{brief(line.name)} {line.note}{line.more}" for line in lines if line.name)
    return Picture(
        "How much room is left for further datasets",
        f"Free share of each modality's head by version; dotted: forecast. {notes or 'No version yet'}.",
        _capacity_table(capacity.modalities),
        width,
        height,
        body,
    )


def _forecast(capacity: ModalityCapacity) -> dict[int, float]:
    """Return the free share after each of the next datasets of the modality, by version."""
    if capacity.taken_per_dataset is None or not capacity.history:
        return {}
    newest, kept = capacity.history[-1], 1 - capacity.taken_per_dataset
    return {newest.version + n: newest.free_share * kept**n for n in range(1, _AHEAD + 1)}


def _left(datasets: int | None) -> str:
    if datasets is None:
        return ""
    return f", about {counted(datasets, 'dataset')} left" if datasets else ", full"


def _capacity_table(modalities: Mapping[str, ModalityCapacity]) -> Table:
    free = [{each.version: each.free_share for each in one.history} for one in modalities.values()]
    known = [
        _forecast(capacity) | shares
        for capacity, shares in zip(modalities.values(), free, strict=True)
    ]
    measured = {version for shares in free for version in shares}
    versions = sorted({version for shares in known for version in shares})

    def cells(index: int) -> tuple[str, ...]:
        version = versions[index]
        label = f"{version}" if version in measured else f"{version} (forecast)"
        return (label, *(percent(shares.get(version)) for shares in known))

    caption = "Free share of each modality's head in %, by version"
    return Table(caption, ("version", *map(clean, modalities)), Rows(len(versions), cells))


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


def loss_curve(attempts: Sequence[ProgressHistory], *, width: float = WIDTH) -> Picture:
    """Draw the loss of each attempt over its updates; below it the share of the gradient removed.

    `attempts`: oldest first. Reports without a loss, from before and after the training, are left out.
    """
    trained = [
        (each.attempt or 0, [point for point in each.points if point.loss is not None])
        for each in attempts
    ]
    losses, removed = [], []
    for place, (attempt, points) in enumerate(trained):
        name = f"attempt {attempt}" if len(trained) > 1 else "loss"
        curve = [(float(point.updates_done), point.loss) for point in points]
        losses.append(Line(name, curve, series(place), significant(_last_finite(curve))))
        shares = [(float(point.updates_done), point.removed_share) for point in points]
        note = f"{percent(_last_finite(shares), 0)} %"
        removed.append(Line(name if len(trained) > 1 else "removed", shares, series(place), note))
    updates = [float(point.updates_done) for _, points in trained for point in points]
    x_range = (min(updates, default=0.0), max(updates, default=0.0))
    plots = [Plot(Axes("update", "loss"), losses, height=200, x_range=x_range)]
    if any(segments(line.points) for line in removed):
        axes = Axes("update", "removed share of the gradient in %", 100.0, (0.0, 1.0))
        plots.append(Plot(axes, removed, height=90, x_range=x_range))
    gutter = max(plot.gutter(width) for plot in plots)
    body, height = "", 0.0
    for plot in plots:
        drawn, taken = draw(replace(plot, labels_width=gutter), width, height)
        body, height = body + drawn, height + taken + 6
    known = [
        f"{line.name} from {significant(runs[0][0][1])} to {significant(runs[-1][-1][1])}"
        for line in losses
        if (runs := segments(line.points))
    ]
    words = f"{'; '.join(known).capitalize()}." if known else "No progress has been reported yet."
    rows = [
        (
            str(attempt),
            f"{point.updates_done:,}",
            significant(point.loss),
            percent(point.removed_share),
        )
        for attempt, points in trained
        for point in points
    ]
    headings = ("attempt", "update", "loss", "removed (%)")
    table = Table("Progress reports of each attempt", headings, rows)
    return Picture("Loss of the training", words, table, width, height, body)


def _last_finite(points: Sequence[tuple[float, float | None]]) -> float | None:
    runs = segments(points)
    return runs[-1][-1][1] if runs else None
