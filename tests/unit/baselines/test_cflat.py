"""C-FLAT: four gradients at four points, and parameters that end exactly where they began."""

import pytest
import torch
from torch import Tensor

from benchmarks.baselines.cflat import CFlat
from tests.unit.methods.contexts import (
    IMAGE_TEXT,
    batch_of,
    context_on,
    gradients_left_by,
    loss_by_loops,
    pair_for,
    random_rows,
)
from workers.methods.method import Batch, TrainingContext
from workers.model.rows import PairedRows

NEW = random_rows(IMAGE_TEXT, seed=1)
SHAPES = ((4, 7), (4, 5))


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def gradient_at(context: TrainingContext, point: Tensor) -> Tensor:
    """Gradient of the loss as a function of both changes in one vector."""
    leaf = point.clone().requires_grad_()
    image, text = leaf[:28].view(SHAPES[0]), leaf[28:].view(SHAPES[1])
    weights = dict(context.heads.weights)
    now = {**weights, "image": weights["image"] + image, "text": weights["text"] + text}
    return torch.autograd.grad(loss_by_loops(now, IMAGE_TEXT, NEW, 0.2), leaf)[0]


@pytest.mark.parametrize(("radius", "flatness"), [(0.2, 0.2), (0.05, 3.0)])
def test_step_equals_the_formula_of_four_passes(radius: float, flatness: float) -> None:
    method, context = CFlat(radius, flatness), context_on(IMAGE_TEXT)
    pair = pair_for(method, context)
    here = flat(list(pair.changes))
    g0 = gradient_at(context, here)
    g1 = gradient_at(context, here + radius * g0 / g0.norm())
    h = g1 - g0
    sharper = here + radius * h / h.norm()
    g2 = gradient_at(context, sharper)
    g3 = gradient_at(context, sharper + radius * g2 / g2.norm())
    found = flat(gradients_left_by(method, context, pair, NEW))
    torch.testing.assert_close(found, g1 + flatness * (g3 - g2))


def test_parameters_are_restored_bit_for_bit() -> None:
    method, context = CFlat(), context_on(IMAGE_TEXT)
    pair = pair_for(method, context)
    before = [change.detach().clone() for change in pair.changes]
    gradients_left_by(method, context, pair, NEW)
    assert all(map(torch.equal, before, pair.changes))


def test_answer_is_the_loss_where_the_update_starts() -> None:
    method, context = CFlat(), context_on(IMAGE_TEXT)
    pair = pair_for(method, context)
    batch = batch_of(context, pair, NEW)
    expected = batch.loss().detach()
    assert torch.equal(method.update_rule(context, pair).backward(batch), expected)


def test_loss_without_a_slope_leaves_no_gradient() -> None:
    """All rows are the same item: there is nothing to distinguish, and no division by zero."""
    same = torch.zeros(len(NEW), dtype=torch.int64)
    flat_rows = PairedRows(
        NEW.first_NI[:1].expand(8, -1), NEW.second_NJ[:1].expand(8, -1), same, same
    )
    method, context = CFlat(), context_on(IMAGE_TEXT)
    pair = pair_for(method, context)
    found = flat(gradients_left_by(method, context, pair, flat_rows))
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-9)


def test_constant_loss_is_survived() -> None:
    method, context = CFlat(), context_on(IMAGE_TEXT)
    pair = pair_for(method, context)
    batch = Batch(lambda: sum((0.0 * change.square()).sum() for change in pair.changes), NEW)  # type: ignore[arg-type,return-value]
    method.update_rule(context, pair).backward(batch)
    for change in pair.changes:
        assert change.grad is not None
        assert torch.equal(change.grad, torch.zeros_like(change))


@pytest.mark.parametrize("settings", [{"radius": 0.0}, {"flatness": -0.1}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="permitted"):
        CFlat(**settings)
