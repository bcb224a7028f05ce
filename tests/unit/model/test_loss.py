"""InfoNCE against a slow reference, and what several positives mean."""

import pytest
import torch

from workers.model.loss import Everywhere, positives, symmetric_info_nce, unit


def batch(rows: int = 6, width: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        unit(torch.randn(rows, width, generator=generator)),
        unit(torch.randn(rows, width, generator=generator)),
    )


def test_single_positives_give_the_usual_loss() -> None:
    first, second = batch()
    loss = symmetric_info_nce((first, second), torch.eye(6).bool(), 0.07)
    scores, labels = first @ second.mT / 0.07, torch.arange(6)
    expected = (
        torch.nn.functional.cross_entropy(scores, labels)
        + torch.nn.functional.cross_entropy(scores.mT, labels)
    ) / 2
    torch.testing.assert_close(loss, expected)


def test_shares_of_the_batch_add_up_to_the_whole_loss() -> None:
    first, second = batch()
    positive = torch.eye(6).bool()
    whole = symmetric_info_nce((first, second), positive, 0.1)
    statistics = torch.zeros(6, 3)  # The loss does not need those of others, its gradient does.
    everywhere = Everywhere(first, second, lambda _: statistics)
    parts = [
        symmetric_info_nce((first[own], second[own]), positive[own], 0.1, everywhere)
        for own in (slice(0, 4), slice(4, 6))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


@pytest.mark.parametrize("equal", [False, True], ids=["each its own item", "texts repeat"])
def test_gradient_in_closed_form_is_that_of_autograd(equal: bool) -> None:
    """Gradients of embeddings, against the loss written out."""
    keys = torch.tensor([1, 1, 2, 3, 3, 3]) if equal else torch.arange(6)
    positive = positives(torch.arange(6), keys, torch.arange(6), keys)
    weight = positive / positive.sum(dim=1, keepdim=True)
    sides = [side.double().requires_grad_() for side in batch()]
    scores = sides[0] @ sides[1].mT / 0.2
    ways = torch.stack((scores, scores.mT)).log_softmax(dim=2)
    expected = -(ways * weight).sum() / 12
    found = symmetric_info_nce((sides[0], sides[1]), positive, 0.2)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(3 * found, sides),
        torch.autograd.grad(3 * expected, sides),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_rows_with_the_same_caption_are_not_negatives() -> None:
    """With two equal captions the loss is least where both rows claim both, not one each."""
    keys_first, keys_second = torch.tensor([1, 2, 3]), torch.tensor([7, 7, 8])
    positive = positives(keys_first, keys_second, keys_first, keys_second)
    assert positive.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    first = torch.eye(3)[[0, 0, 1]]
    loss = symmetric_info_nce((first, first), positive, 0.05)
    assert float(loss) == pytest.approx(2 / 3 * torch.log(torch.tensor(2.0)).item(), abs=1e-6)


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with others"])
def test_scores_of_bfloat16_embeddings_are_not_rounded(alone: bool) -> None:
    """The coldest temperature, under autocast: what float32 gives for the very same numbers."""
    rounded = [side.bfloat16() for side in batch(rows=64, width=32)]
    positive = torch.eye(64).bool()

    def loss_and_gradient(sides: list[torch.Tensor]) -> list[torch.Tensor]:
        leaves = [side.requires_grad_() for side in sides]
        held = [side.detach() for side in sides]
        everywhere = None if alone else Everywhere(held[0], held[1], lambda rows: rows)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = symmetric_info_nce((leaves[0], leaves[1]), positive, 0.01, everywhere)
        return [loss, *torch.autograd.grad(loss, leaves)]

    found = loss_and_gradient(rounded)
    loss, *gradients = loss_and_gradient([side.float() for side in rounded])
    torch.testing.assert_close(found[0], loss, rtol=1e-6, atol=0)
    for ours, theirs in zip(found[1:], gradients, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - theirs).norm() < 2**-7 * theirs.norm()
