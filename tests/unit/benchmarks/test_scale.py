"""The time model: its terms are those of the loop, and statements about clusters follow from them."""

import gc
import math
import resource
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.scale import Found
from benchmarks.scaling import group
from benchmarks.scaling.constants import fair_share_seconds, usual_waiting
from benchmarks.scaling.forecast import RANKS, Forecast
from benchmarks.scaling.group import in_group, seconds_in_cycle
from benchmarks.scaling.model import (
    TERMS,
    Shape,
    gathered_bytes,
    moment_bytes,
    reduced_bytes,
    update_terms,
)
from benchmarks.scaling.page import markdown
from benchmarks.scaling.plots import draw_all
from benchmarks.scaling.rates import Cluster, Curve, Machine
from benchmarks.training import timing

SHARED = ("gather", "reduce", "waiting")
STRAIGHT = Curve(((1.0, 1e-9), (1e9, 1.0)))


class Counting:
    """Rates that count: a second for each multiply-add, nothing for anything else."""

    embedding_bytes = 4

    def product(self, rows: float, inner: float, columns: float) -> float:
        return rows * inner * columns

    def scores(self, entries: float, directions: int) -> float:
        return 0.0

    def heads(self, entries: float) -> float:
        return 0.0

    rows = packing = heads

    def gather(self, bytes_each: float, ranks: int) -> float:
        return 0.0

    reduce = gather

    def waiting(self, work: float) -> float:
        return 0.0

    def ahead(self, payload: float, rotation: float, rest: float) -> float:
        return rotation

    def fixed(self, rest: float) -> float:
        return 0.0


def test_a_curve_goes_through_its_points_and_straight_between() -> None:
    curve = Curve.through({1.0: 1.0, 100.0: 10.0})
    assert [curve.at(size) for size in (1.0, 100.0)] == [1.0, 10.0]
    assert curve.at(10.0) == pytest.approx(math.sqrt(10))
    assert curve.at(10000.0) == pytest.approx(100.0)
    assert curve.at(0) == 0


def test_a_curve_needs_two_points() -> None:
    with pytest.raises(ValueError, match="at least 2 points, these are 1"):
        Curve.through({1.0: 1.0})


def test_alone_the_products_are_those_of_a_bare_loop() -> None:
    terms = update_terms(Shape(batch=8, width=4, inputs=6, ranks=1), Counting())
    assert terms["products"] == 4 * 8 * 4 * 6 + 3 * 8 * 8 * 4
    assert sum(terms.values()) == terms["products"]


def test_with_others_a_rank_has_its_rows_in_both_directions() -> None:
    terms = update_terms(Shape(batch=8, width=4, inputs=6, ranks=2), Counting())
    assert terms["products"] == 4 * 4 * 4 * 6 + 4 * 4 * 8 * 4


def test_rows_that_are_streamed_are_rotated() -> None:
    shape = Shape(batch=8, width=4, inputs=6, ranks=2, row_bytes=24)
    assert update_terms(shape, Counting())["read"] == 2 * 4 * 6 * 6


def test_bytes_are_those_of_the_formulas() -> None:
    shape = Shape(batch=12, width=5, inputs=7, ranks=3, free_share=0.5)
    assert gathered_bytes(shape) == (80, 80, 64, 48)
    assert reduced_bytes(shape) == (4 * 0.5 * 2 * 5 * 7,)
    assert reduced_bytes(Shape(batch=12, width=512, inputs=512, ranks=3)) == (2**20, 2**20)
    assert moment_bytes(7) == 8 * (7 * 8 / 2 + 7 * 8 / 2 + 49 + 1)


def machine(ranks: int, cores: int) -> Machine:
    names = ("rows product", "inner product", "heads", "rows", "packing", "read")
    scores = ("scores, one direction", "scores, two directions")
    own = dict.fromkeys((*names, *scores), STRAIGHT)
    return Machine(ranks, cores, own, dict.fromkeys(SHARED, STRAIGHT), 1e-3)


def test_ranks_beyond_the_cores_take_turns() -> None:
    entries = 1000.0
    assert machine(2, 2).heads(entries) == machine(1, 2).heads(entries)
    assert machine(4, 2).heads(entries) == pytest.approx(2 * machine(2, 2).heads(entries))
    assert machine(4, 2).gather(8.0, 4) == machine(2, 2).gather(8.0, 2)


def test_ranks_wait_three_times_for_the_last() -> None:
    shape = Shape(batch=8, width=4, inputs=6, ranks=2)
    # Of so little work nothing was tried: it counts as the least that was.
    assert update_terms(shape, machine(2, 2))["waiting"] == pytest.approx(3 * STRAIGHT.at(1.0))
    assert machine(2, 2).waiting(7.0) == pytest.approx(7e-9)
    assert update_terms(Shape(8, 4, 6, 1), machine(1, 2))["waiting"] == 0


def test_one_odd_look_at_waiting_does_not_count() -> None:
    looks = [{1.0: 0.1, 2.0: 0.3}, {1.0: 0.2, 2.0: 0.1}, {1.0: 9.0, 2.0: 0.15}]
    usual = usual_waiting(looks)
    assert usual == {1.0: 0.2, 2.0: 0.2}, "never less after more work"


def test_in_a_ring_each_is_done_once_and_then_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "WINDOW_SECONDS", 0.0)
    monkeypatch.setattr(group, "_TIMEOUT_SECONDS", 0.01)
    done: list[str] = []
    seconds = seconds_in_cycle([partial(done.append, name) for name in "abc"])
    assert "".join(done) == "abc" * (len(done) // 3)
    assert len(seconds) == 3
    assert min(seconds) > 0


def test_reading_is_hidden_where_a_core_is_free() -> None:
    assert machine(1, 2).ahead(1e6, 0.0, rest=1.0) == 0
    assert machine(2, 2).ahead(1e6, 0.5, rest=1.0) == pytest.approx(0.5 + 1e-3)


def test_more_gpus_never_make_products_slower() -> None:
    forecast = Forecast(1e-3, STRAIGHT, 1e9, 0.5)
    products = [forecast.update(ranks, 1024, 65536)["products"] for ranks in RANKS[1:]]
    assert products == sorted(products, reverse=True)


def test_a_large_update_hides_the_interpreter() -> None:
    cluster = Cluster(1, 1e-3, STRAIGHT)
    assert cluster.fixed(rest=0.4e-3) == pytest.approx(0.6e-3)
    assert cluster.fixed(rest=2e-3) == 0


def test_the_page_and_the_pictures_show_what_was_found(tmp_path: Path) -> None:
    points = {1.0: 1e-9, 1e9: 1.0}
    own = dict.fromkeys(machine(1, 2).own, points)
    shared = dict.fromkeys(SHARED, points)
    found = Found(2, {1: own, 2: own}, {2: shared}, (1e-3, 2e-3), 1e9, 0.5)
    shape = Shape(64, 32, 32, 2)
    predicted = update_terms(shape, found.rates(2))
    measured = {"median": 2 * sum(predicted.values()), "windows": 9, "calm_windows": 8}
    update = {
        "width": 32,
        "batch": 64,
        "ranks": 2,
        "streamed": False,
        "error": -0.5,
        "predicted": predicted,
        "measured": measured,
    }
    document = {
        "updates": [update],
        "forecast": found.forecast().document(),
        "assumed": {"interpreter": "1 ms"},
        "own": {"1": own, "2": own},
        "shared": {"2": shared},
        "machine": {"cores": 2},
    }
    pictures = draw_all(document, tmp_path)
    assert [path.stat().st_size > 10_000 for path in pictures] == [True] * 4
    page = markdown(document, pictures)
    assert "0 of 1 predictions are within 15 %" in page
    assert all(path.name in page for path in pictures)
    assert all(f"{term} ms" in page for term in TERMS)


def of_two_processes() -> tuple[list[float], float]:
    """What fair cores would take where one process needs three seconds and the other one; page faults."""
    faults = page_faults_of_a_pass()
    seconds = torch.tensor([3.0 if torch.distributed.get_rank() else 1.0], dtype=torch.float64)
    found: list[float] = fair_share_seconds(seconds).tolist()
    let_go_in_a_circle()
    return found, faults


def page_faults_of_a_pass() -> float:
    """Page faults of a pass over rows of 16 MiB, with its temporary tensors."""
    rows, faults = torch.ones(2048, 2048), []
    for _ in range(11):
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        (rows + 1) * 2
    return (faults[-1] - faults[1]) / 9


def let_go_in_a_circle() -> None:
    """Leave a reference cycle that holds the process group, as DDP does, for the collector."""
    gc.disable()
    ring: list[object] = [torch.distributed.group.WORLD]
    ring.append(ring)


def test_a_group_shares_cores_fairly_pays_for_no_page_faults_and_ends() -> None:
    """In three seconds two processes do it four times, each of them twice: 1.5 seconds.

    An update pays for no page faults either: constants had been up to four times too large.
    """
    for seconds, faults in in_group(of_two_processes, 2):
        assert seconds == [pytest.approx(1.5)]
        assert faults < 100
