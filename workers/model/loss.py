"""Symmetric InfoNCE with several positives, its gradient in closed form.

Shapes: B rows of the global batch, L of them local, E width of the embeddings.

For scores s_ij = u_i · v_j / τ the loss of the whole batch is

    Σ_i (a_i − mean of s_ij over i's positives) + Σ_j (c_j − mean of s_ij over j's positives)

over 2 B, with a_i = log Σ_j exp s_ij for rows and c_j = log Σ_i exp s_ij for columns. Its gradient
with respect to s_ij is exp(s_ij − a_i) + exp(s_ij − c_j) less the positives' weights: whoever has the
scores of some rows against all columns needs of other rows a_j, c_j and the number of positives alone.
So a rank computes the gradient of its own rows from B/N × B scores, embeddings travel once, and no
gradient of an embedding travels at all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Gather = Callable[[Tensor], Tensor]
"""Rows of this process (L × anything) → those of all, in order (B × anything)."""


@dataclass(frozen=True)
class Everywhere:
    """Embeddings of the whole batch, and the way to bring other rows together."""

    first_BE: Tensor
    second_BE: Tensor
    gather: Gather


def positives(
    first_keys_L: Tensor, second_keys_L: Tensor, first_keys_B: Tensor, second_keys_B: Tensor
) -> Tensor:
    """Which rows share an item (bool, L × B): the same first or the same second feature.

    Rows with the same caption or label text are positives of each other; as negatives they would
    push apart what is the same.
    """
    return (first_keys_L[:, None] == first_keys_B) | (second_keys_L[:, None] == second_keys_B)


def symmetric_info_nce(
    local: tuple[Tensor, Tensor],
    positive_LB: Tensor,
    temperature: Tensor | float,
    everywhere: Everywhere | None = None,
) -> Tensor:
    """Both directions averaged, of the local rows, divided by the rows of the *global* batch.

    Without `everywhere` the local rows are the batch. Summed over processes this is the loss of the
    whole batch in one. The gradient with respect to local embeddings is that of the *whole* loss;
    that with respect to the temperature is of the local rows' share. With one positive a row this is
    InfoNCE (arXiv 1807.03748); with several, the outer form of supervised contrastive learning
    (arXiv 2004.11362, eq. 2). `positive_LB` must be symmetric over the batch. Scores and sums are of
    float32 at least, also where embeddings are bfloat16 and under autocast.
    """
    first_LE, second_LE = local
    inverse = torch.ones((), dtype=_exact(first_LE), device=first_LE.device) / temperature
    with torch.autocast(first_LE.device.type, enabled=False):
        loss: Tensor = _SymmetricInfoNCE.apply(
            first_LE, second_LE, inverse, positive_LB, everywhere
        )
    return loss


class _SymmetricInfoNCE(torch.autograd.Function):
    """See the module."""

    @staticmethod
    def forward(
        ctx: Any,
        first_LE: Tensor,
        second_LE: Tensor,
        inverse: Tensor,
        positive_LB: Tensor,
        everywhere: Everywhere | None,
    ) -> Tensor:
        whole = everywhere or Everywhere(first_LE, second_LE, lambda rows: rows)
        forward_LB = _scores(first_LE, whole.second_BE, inverse)
        # Alone, one product has the scores of both directions.
        backward_LB = _scores(second_LE, whole.first_BE, inverse) if everywhere else forward_LB.mT
        rows_L, columns_L = forward_LB.logsumexp(dim=1), backward_LB.logsumexp(dim=1)
        weight_L = 1 / positive_LB.sum(dim=1).to(rows_L)
        own_L3 = torch.stack([rows_L, columns_L, weight_L], dim=1)
        both_LB = (forward_LB + backward_LB).masked_fill_(~positive_LB, 0)
        loss = (rows_L + columns_L - both_LB.sum(dim=1) * weight_L).sum()
        ctx.save_for_backward(forward_LB, backward_LB, positive_LB, own_L3, whole.gather(own_L3))
        ctx.embeddings = (whole.first_BE, whole.second_BE)
        ctx.inverse, ctx.alone = inverse, everywhere is None
        return loss / (2 * positive_LB.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        forward_LB, backward_LB, positive_LB, own_L3, all_B3 = ctx.saved_tensors
        first_BE, second_BE = ctx.embeddings
        scale = slope * ctx.inverse / (2 * positive_LB.shape[1])
        pull_LB = _pull(forward_LB, positive_LB, own_L3, all_B3)
        first_LE = (pull_LB.to(second_BE.dtype) @ second_BE).mul_(scale)
        if ctx.alone:
            second_LE = (pull_LB.mT.to(first_BE.dtype) @ first_BE).mul_(scale)
        else:
            turned_LB = _pull(backward_LB, positive_LB, own_L3[:, [1, 0, 2]], all_B3[:, [1, 0, 2]])
            second_LE = (turned_LB.to(first_BE.dtype) @ first_BE).mul_(scale)
        inverse = None
        if ctx.needs_input_grad[2]:
            inverse = _slope_of_scale((forward_LB, backward_LB), positive_LB, own_L3)
            inverse = inverse * scale / ctx.inverse**2
        return first_LE, second_LE, inverse, None, None


def _exact(embeddings: Tensor) -> torch.dtype:
    return torch.promote_types(embeddings.dtype, torch.float32)


def _scores(rows_LE: Tensor, columns_BE: Tensor, inverse: Tensor) -> Tensor:
    """Inner products over the temperature (L × B). Rounded to bfloat16 they would be off by 2⁻⁹ of
    themselves, at a temperature of 0.01 a fifth of a probability."""
    exact = _exact(rows_LE)
    if exact == rows_LE.dtype:
        return (rows_LE * inverse) @ columns_BE.mT
    if rows_LE.is_cuda:
        return torch.mm(rows_LE, columns_BE.mT, out_dtype=exact).mul_(inverse)
    return (rows_LE.to(exact) * inverse) @ columns_BE.to(exact).mT


def _pull(scores_LB: Tensor, positive_LB: Tensor, own_L3: Tensor, all_B3: Tensor) -> Tensor:
    """The gradient of 2 B times the whole loss with respect to these scores (L × B).

    The columns of `own_L3` and `all_B3`: log-sums along the scores' own direction, along the other
    one, and 1 / number of positives.
    """
    pull_LB = (scores_LB - own_L3[:, :1]).exp_()
    pull_LB += (scores_LB - all_B3[:, 1]).exp_()
    weight_LB = (own_L3[:, 2:] + all_B3[:, 2]).masked_fill_(~positive_LB, 0)
    return pull_LB.sub_(weight_LB)


def _slope_of_scale(
    directions: tuple[Tensor, Tensor], positive_LB: Tensor, own_L3: Tensor
) -> Tensor:
    """Σ s ∂/∂s of 2 B times the local rows' share, over both directions."""
    total = own_L3.new_zeros(())
    for scores_LB, side in zip(directions, (0, 1), strict=True):
        share_LB = (scores_LB - own_L3[:, side : side + 1]).exp_()
        share_LB -= positive_LB * own_L3[:, 2:]
        total = total + (share_LB * scores_LB).sum()
    return total


def unit(embedding_BE: Tensor) -> Tensor:
    """Rows at unit length."""
    return torch.nn.functional.normalize(embedding_BE, dim=1)
