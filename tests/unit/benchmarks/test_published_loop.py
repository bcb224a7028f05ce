"""The published script's loop, where its lock is installed: it projects before AdamW, and is timed."""

from pathlib import Path

import pytest
import torch

from benchmarks.training.loops import random_sides
from benchmarks.training.timing import WindowTimer
from tests.unit.benchmarks.ticks import Ticks

pytest.importorskip("accelerate", reason="of the lock of the benchmarks alone")
transformers = pytest.importorskip("transformers")


def test_gradients_lose_what_the_projections_hold() -> None:
    from benchmarks.training.published_loop import Heads, ProjectGradients

    heads = Heads(4, random_sides(8, 6, seed=0))
    for head in (heads.first, heads.second):
        head.weight.grad = torch.ones(4, 6)
    outputs, inputs = torch.diag(torch.tensor([1.0, 0, 0, 0])), torch.eye(6)
    projecting = ProjectGradients(((outputs, inputs), (outputs, inputs)), WindowTimer())
    projecting.on_pre_optimizer_step(model=heads)
    expected = torch.ones(4, 6)
    expected[0] = 0
    for head in (heads.first, heads.second):
        torch.testing.assert_close(head.weight.grad, expected)


@pytest.mark.filterwarnings("ignore")  # Of packages that are no part of the product.
def test_every_step_of_trainer_is_timed(tmp_path: Path) -> None:
    from benchmarks.training.published_loop import PublishedLoop

    ticks = Ticks()
    PublishedLoop(random_sides(64, 6, seed=0), 4, 8, tmp_path).run(ticks, updates=7)
    assert ticks.count == 7
