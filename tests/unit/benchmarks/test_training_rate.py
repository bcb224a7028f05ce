"""The training benchmark: peers compute what they should, windows count what they should."""

import re
from collections.abc import Iterator

import pytest
import torch

from benchmarks.training.loops import (
    AutogradLoop,
    BareLoop,
    Clock,
    ProductLoop,
    Sides,
    batches,
    held,
    learned_before,
    random_sides,
)
from benchmarks.training.timing import Window, WindowTimer
from tests.architecture.repository import ROOT

WIDTH, ROWS = 16, 64


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Ticks(WindowTimer):
    """Counts alone: what a test asserts must not depend on how long anything takes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def tick(self) -> None:
        self.count += 1


def sides() -> Sides:
    return random_sides(ROWS, WIDTH, seed=0)


def test_bare_loop_updates_as_torch_differentiates() -> None:
    by_hand, by_torch = (loop(sides(), 12) for loop in (BareLoop, AutogradLoop))
    start = by_hand.heads[0].detach().clone()
    for index_B in batches(ROWS, 8, 20, seed=1):
        by_hand.update(index_B)
        by_torch.update(index_B)
    for ours, theirs in zip(by_hand.heads, by_torch.heads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    assert not torch.allclose(by_hand.heads[0], start, atol=1e-3)


def test_batches_go_through_all_rows_before_one_comes_again() -> None:
    found = list(batches(10, 3, 7, seed=0))
    assert [len(index_B) for index_B in found] == [3] * 7
    assert len(set(torch.cat(found[:3]).tolist())) == 9


def test_every_update_of_a_pass_is_timed() -> None:
    ticks = Ticks()
    loop = ProductLoop(learned_before(WIDTH), held(random_sides(ROWS, WIDTH - 1, 0)), 8)
    loop.run(Clock(ticks))
    assert ticks.count == ROWS // 8


def test_what_is_protected_is_there() -> None:
    """Otherwise the mask would cost nothing, and the comparison would be void."""
    loop = ProductLoop(learned_before(WIDTH), held(random_sides(ROWS, WIDTH - 1, 0)), 8)
    spaces = loop.run(Clock(WindowTimer())).spaces
    assert all(0 < space.blocked_share < 1 for space in spaces.values())


def test_calm_windows_alone_count_where_there_are_enough() -> None:
    windows = WindowTimer(enough=2)
    windows.all = [Window(2, 4.0, 1.0, 0.9), Window(2, 2.0, 1.0, 0.0), Window(4, 6.0, 4.0, 0.05)]
    timing = windows.timing()
    assert (timing.mean, timing.windows, timing.calm_windows) == (1.25, 3, 2)
    assert timing.cpu == 0.75


def test_peers_are_measured_on_the_versions_that_the_product_has() -> None:
    """One torch below both, or the comparison would be of two."""
    of_product, of_peers = (
        dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", (ROOT / lock).read_text(), re.MULTILINE))
        for lock in ("requirements.lock", "benchmarks/requirements.lock")
    )
    shared = set(of_product) & set(of_peers) - {"numpy", "networkx"}
    assert "torch" in shared
    assert {name: of_peers[name] for name in shared} == {name: of_product[name] for name in shared}
    # The product has transformers for its encoders; Trainer needs this beside it.
    assert "accelerate" not in of_product
