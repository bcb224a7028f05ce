"""Symmetric InfoNCE with several positives, its gradient in closed form.

Shapes: B rows of the global batch, L of them local, E width of the embeddings.

For scores s_ij = u_i · v_j / τ and P_i the positives of row i (symmetric: j ∈ P_i if i ∈ P_j), the
loss of the whole batch is

    L = 1/2B · [ Σ_i (a_i − mean of s_ij over j ∈ P_i) + Σ_j (c_j − mean of s_ij over i ∈ P_j) ]   (1)

with a_i = log Σ_j exp s_ij (rows) and c_j = log Σ_i exp s_ij (columns). With w_i = 1 / |P_i|,

    2B · ∂L/∂s_ij = exp(s_ij − a_i) + exp(s_ij − c_j) − [j ∈ P_i] (w_i + w_j) =: g_ij            (2)
    ∂L/∂u_i = 1/(2B τ) · Σ_j g_ij v_j,     ∂L/∂v_j = 1/(2B τ) · Σ_i g_ij u_i                      (3)

So a rank with the scores of its rows against all columns needs only three numbers of every other row:
a_j, c_j and w_j. It computes the gradient of its own rows from L × B scores. Embeddings are
gathered once, and gradients of embeddings are never sent.
docs/decisions/0015-gradient-in-closed-form.md compares this with autograd.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Gather = Callable[[Tensor], Tensor]
"""Rows of this process (L × any) → those of all processes, in order (B × any)."""


def unit(rows_BE: Tensor) -> Tensor:
    """Rows at unit length."""
    return torch.nn.functional.normalize(rows_BE, dim=1)


@dataclass(frozen=True)
class Everywhere:
    """Embeddings of the whole batch, and the collective that gathers other rows."""

    first_BE: Tensor
    second_BE: Tensor
    gather: Gather


def positives(
    first_keys_L: Tensor, second_keys_L: Tensor, first_keys_B: Tensor, second_keys_B: Tensor
) -> Tensor:
    """Which rows share an item (bool, L × B): the same first or the same second feature.

    Rows with the same caption or label are positives of each other. As negatives they would push equal
    items apart.
    """
    return (first_keys_L[:, None] == first_keys_B) | (second_keys_L[:, None] == second_keys_B)


def symmetric_info_nce(
    local: tuple[Tensor, Tensor],
    positive_LB: Tensor,
    temperature: float,
    everywhere: Everywhere | None = None,
) -> Tensor:
    """The local rows' part of (1): both directions, divided by the rows of the *global* batch.

    Without `everywhere` the local rows are the batch. The sum over processes is the loss of the whole
    batch. The gradient with respect to local embeddings is that of the *whole* loss. With one positive
    per row this is InfoNCE (arXiv 1807.03748), with several the outer form of supervised contrastive
    learning (arXiv 2004.11362, eq. 2). `positive_LB` must be symmetric over the batch. Scores and sums
    are float32 at least, even if embeddings are bfloat16 and under autocast.
    """
    first_LE, second_LE = local
    with torch.autocast(first_LE.device.type, enabled=False):
        loss: Tensor = _SymmetricInfoNCE.apply(
            first_LE, second_LE, 1 / temperature, positive_LB, everywhere
        )
    return loss


class _SymmetricInfoNCE(torch.autograd.Function):
    """Loss (1) forwards, gradient (3) backwards."""

    @staticmethod
    def forward(
        ctx: Any,
        first_LE: Tensor,
        second_LE: Tensor,
        inverse: float,
        positive_LB: Tensor,
        everywhere: Everywhere | None,
    ) -> Tensor:
        whole = everywhere or Everywhere(first_LE, second_LE, lambda rows: rows)
        forward_LB = _scores(first_LE, whole.second_BE, inverse)
        # Scores of own u against all v, and of own v against all u. In a single process the second
        # is the transpose of the first.
        backward_LB = _scores(second_LE, whole.first_BE, inverse) if everywhere else forward_LB.mT
        rows_L, columns_L = forward_LB.logsumexp(dim=1), backward_LB.logsumexp(dim=1)
        # Every row is a positive of itself, so |P_i| ≥ 1.
        weight_L = 1 / positive_LB.sum(dim=1).to(rows_L)
        # What other ranks need of these rows: a, c and w.
        own_L3 = torch.stack([rows_L, columns_L, weight_L], dim=1)
        # Σ over positives of s_ij + s_ji, times w_i: both means of (1) at once.
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
        # g of (2) for own rows; times all v it is the gradient of own u.
        pull_LB = _pull(forward_LB, positive_LB, own_L3, all_B3)
        first_LE = (pull_LB.to(second_BE.dtype) @ second_BE).mul_(scale)
        if ctx.alone:
            # All rows are own rows: the gradient of v is gᵀ u.
            second_LE = (pull_LB.mT.to(first_BE.dtype) @ first_BE).mul_(scale)
        else:
            # The same for own v against all u: rows and columns, so a and c, change places.
            columns_LB = _pull(backward_LB, positive_LB, own_L3[:, [1, 0, 2]], all_B3[:, [1, 0, 2]])
            second_LE = (columns_LB.to(first_BE.dtype) @ first_BE).mul_(scale)
        return first_LE, second_LE, None, None, None


def _exact(embeddings: Tensor) -> torch.dtype:
    return torch.promote_types(embeddings.dtype, torch.float32)


def _scores(rows_LE: Tensor, columns_BE: Tensor, inverse: float) -> Tensor:
    """Inner products over the temperature (L × B), float32 at least.

    Rounded to bfloat16 they would be off by a relative 2⁻⁹: at a temperature of 0.01, a fifth of a
    probability.
    """
    exact = _exact(rows_LE)
    if exact == rows_LE.dtype:
        return (rows_LE * inverse) @ columns_BE.mT
    if rows_LE.is_cuda:
        return torch.mm(rows_LE, columns_BE.mT, out_dtype=exact).mul_(inverse)
    return (rows_LE.to(exact) * inverse) @ columns_BE.to(exact).mT


def _pull(scores_LB: Tensor, positive_LB: Tensor, own_L3: Tensor, all_B3: Tensor) -> Tensor:
    """g of equation (2) for these scores (L × B).

    The columns of `own_L3` and `all_B3` are log-sums along the scores' own direction, log-sums along
    the other one, and w. In place: L × B is the largest tensor of an update.
    """
    # exp(s − a_i): the softmax over a row. exp(s − c_j): the softmax over a column.
    pull_LB = (scores_LB - own_L3[:, :1]).exp_()
    pull_LB += (scores_LB - all_B3[:, 1]).exp_()
    weight_LB = (own_L3[:, 2:] + all_B3[:, 2]).masked_fill_(~positive_LB, 0)
    return pull_LB.sub_(weight_LB)
