"""GPM: an orthonormal memory that grows by the paper's criterion, and gradients without it."""

import pytest
import torch
from torch import Tensor

from benchmarks.baselines.gpm import GPM, grown
from tests.fakes.rotated_rows import rotated
from tests.unit.methods.contexts import (
    AUDIO_IMAGE,
    IMAGE_TEXT,
    context_on,
    gradients_left_by,
    gradients_of,
    loss_by_loops,
    pair_for,
    random_rows,
    taught,
    weights_now,
)
from workers.nullspace.moments import SecondMoment
from workers.train.loop import new_heads, train_pair
from workers.train.run import Run

NEW, OLD = random_rows(IMAGE_TEXT, seed=1, rows=16), random_rows(AUDIO_IMAGE, seed=2)


def inputs(seed: int, rows: int = 40) -> Tensor:
    """Rows with a falling spectrum."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.randn(9, 9, generator=generator, dtype=torch.float64)
    scale = 0.6 ** torch.arange(9)
    return (torch.randn(rows, 9, generator=generator, dtype=torch.float64) * scale) @ turn


def grown_by_svd(memory: Tensor, rows: Tensor, threshold: float) -> Tensor:
    """The criterion on the rows themselves."""
    represented = rows.mT
    rest = represented - memory @ (memory.mT @ represented)
    left, values, _ = torch.linalg.svd(rest)
    energy = (memory.mT @ represented).square().sum()
    for count in range(len(values) + 1):
        if energy + values[:count].square().sum() >= threshold * represented.square().sum():
            return torch.cat([memory, left[:, :count]], dim=1)
    raise AssertionError("all directions hold all energy")


def test_memory_grows_by_the_criterion_on_the_rows_and_stays_orthonormal() -> None:
    found = expected = torch.zeros(9, 0, dtype=torch.float64)
    ranks = []
    for seed, threshold in ((1, 0.9), (2, 0.9), (3, 0.95), (3, 0.95), (4, 0.99)):
        rows = inputs(seed)
        found = grown(found, SecondMoment(len(rows), rows.mT @ rows), threshold)
        expected = grown_by_svd(expected, rows, threshold)
        torch.testing.assert_close(found @ found.mT, expected @ expected.mT)
        torch.testing.assert_close(found.mT @ found, torch.eye(found.shape[1]).double())
        ranks.append(found.shape[1])
    assert 0 < ranks[0] < ranks[1] < ranks[2] == ranks[3] < 9


def test_gradient_has_no_part_along_the_memory() -> None:
    """Only the image head has one."""
    method = GPM()
    context = context_on(IMAGE_TEXT, kept=taught(method, (AUDIO_IMAGE, OLD)))
    pair = pair_for(method, context)
    image, text = gradients_left_by(method, context, pair, NEW)
    memory = context.method_state["gpm/image/memory"]
    free = gradients_of(loss_by_loops(weights_now(context, pair), IMAGE_TEXT, NEW, 0.2), pair)
    torch.testing.assert_close(image, free[0] - free[0] @ memory @ memory.mT)
    along = image @ memory
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-12)
    assert float((free[0] @ memory).abs().max()) > 1e-2
    torch.testing.assert_close(text, free[1])


def test_old_outputs_move_with_an_optimizer_that_rescales_entries() -> None:
    """AdamW makes another step of the projected gradient."""
    method = GPM(threshold=1.0)
    context = context_on(IMAGE_TEXT, kept=taught(method, (AUDIO_IMAGE, OLD)))
    spaces = method.update_spaces(context)
    trained = train_pair(method, context, spaces, rotated(context, spaces, NEW), Run())
    before, after = (
        OLD.second_NJ @ heads.weights["image"].mT
        for heads in (context.heads, new_heads(context, spaces, trained.changes))
    )
    assert float((after - before).abs().max()) > 1e-12


@pytest.mark.parametrize("settings", [{"threshold": 0.0}, {"threshold": 1.1}, {"growth": -1.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="permitted"):
        GPM(**settings)
