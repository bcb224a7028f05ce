"""Ticks, labels and colours."""

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmcl.pictures import Pair, modality_graph
from cmcl.pictures.scales import (
    Scale,
    nice_ticks,
    segments,
    spread,
    thinned,
)
from cmcl.pictures.svg import cut, text_width
from cmcl.pictures.theme import COLOURS, SERIES
from tests.unit.pictures.test_pictures import SVG, parsed

VALUES = st.floats(-1e9, 1e9)


@given(VALUES, VALUES, st.integers(1, 10))
def test_ticks_are_round_evenly_spaced_and_enclose_the_values(a: float, b: float, n: int) -> None:
    ticks = nice_ticks(a, b, n)
    low, high = sorted((a, b))
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= high - 1e-6 * step
    assert 2 <= len(ticks) <= n + 3
    assert all(math.isclose(y - x, step, rel_tol=1e-3) for x, y in itertools.pairwise(ticks))
    leading = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(leading - each) for each in (1, 2, 2.5, 5, 10)) < 1e-3


@given(st.lists(st.floats(0, 300), max_size=15))
def test_labels_neither_overlap_nor_leave_their_room(wanted: list[float]) -> None:
    places = spread(wanted, 20, 0, 300)
    in_order = sorted(places)
    assert all(below - above >= 20 - 1e-6 for above, below in itertools.pairwise(in_order))
    assert not places or (in_order[0] >= -1e-6 and in_order[-1] <= 300 + 1e-6)
    for (w, p), (v, q) in itertools.combinations(zip(wanted, places, strict=True), 2):
        assert w == v or (w < v) == (p < q)


@given(st.lists(st.floats(-1e6, 1e6), max_size=2000), st.integers(4, 200))
def test_a_thinned_line_keeps_its_ends_and_its_extremes(values: list[float], count: int) -> None:
    points = [(float(x), y) for x, y in enumerate(values)]
    kept = thinned(points, count)
    assert len(kept) <= max(len(points) if len(points) <= count else 0, count + 3)
    assert kept == sorted(kept)
    assert set(kept) <= set(points)
    if points:
        assert (kept[0], kept[-1]) == (points[0], points[-1])
        assert min(y for _, y in kept) == min(values)
        assert max(y for _, y in kept) == max(values)


@given(st.lists(st.one_of(st.none(), st.floats()), max_size=30))
def test_segments_have_all_finite_points_and_break_at_the_others(
    values: list[float | None],
) -> None:
    points = [(float(x), y) for x, y in enumerate(values)]
    runs = segments(points)
    finite = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    assert [point for run in runs for point in run] == finite
    assert all(b[0] - a[0] == 1 for run in runs for a, b in itertools.pairwise(run))
    assert all(runs)


@given(st.text(max_size=60), st.floats(20, 300))
def test_a_cut_name_fits_and_begins_as_the_whole(name: str, width: float) -> None:
    shown = cut(name, width)
    assert text_width(shown) <= width + 1e-6
    if not shown.endswith("…"):
        assert shown == " ".join(shown.split())


def test_a_scale_maps_its_range_and_stops_at_its_ends() -> None:
    scale = Scale(0, 10, 100, 200)
    assert [scale(each) for each in (0, 5, 10, -3, 30)] == [100, 150, 200, 100, 200]
    assert Scale(4, 4, 100, 200)(4) == 150


def test_labels_of_a_dense_graph_do_not_overlap() -> None:
    names = [f"modality_{index}" for index in range(10)]
    pairs = [Pair(*two, recall=0.5) for two in itertools.combinations(names, 2)]
    root = parsed(modality_graph(pairs))
    boxes = [
        tuple(float(each.get(side, 0)) for side in ("x", "y", "width", "height"))
        for each in root.iter(f"{SVG}rect")
    ]
    assert len(boxes) > 40, "ten nodes, and most of 45 labels"
    for (x, y, w, h), (u, v, a, b) in itertools.combinations(boxes, 2):
        # Coordinates have one decimal.
        assert x + w <= u + 0.2 or u + a <= x + 0.2 or y + h <= v + 0.2 or v + b <= y + 0.2


# --- Colours --------------------------------------------------------------------------------------


def linear(colour: str) -> list[float]:
    values = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]


# Machado, Oliveira and Fernandes 2009, severity 1, for linear RGB.
DEFICIENCIES: dict[str, Sequence[Sequence[float]]] = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}


def times(matrix: Sequence[Sequence[float]], vector: Sequence[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def oklab(rgb: Sequence[float]) -> list[float]:
    """Björn Ottosson's OKLab."""
    to_lms = (
        (0.4122214708, 0.5363325363, 0.0514459929),
        (0.2119034982, 0.6806995451, 0.1073969566),
        (0.0883024619, 0.2817188376, 0.6299787005),
    )
    to_lab = (
        (0.2104542553, 0.7936177850, -0.0040720468),
        (1.9779984951, -2.4285922050, 0.4505937099),
        (0.0259040371, 0.7827717662, -0.8086757660),
    )
    return times(to_lab, [max(0.0, each) ** (1 / 3) for each in times(to_lms, rgb)])


def seen(colour: str, deficiency: str) -> list[float]:
    return oklab(
        [min(1.0, max(0.0, each)) for each in times(DEFICIENCIES[deficiency], linear(colour))]
    )


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_of_series_differ_for_everyone(theme: int, deficiency: str) -> None:
    colours = [COLOURS[str(index)][theme] for index in range(1, SERIES + 1)]
    distances = [
        math.dist(seen(one, deficiency), seen(other, deficiency))
        for one, other in itertools.combinations(colours, 2)
    ]
    # The tritan colour space is smaller, and tritanopia rare: 1 in 10,000.
    assert min(distances) > (0.09 if deficiency == "tritanopia" else 0.12)
