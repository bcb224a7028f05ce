"""The bare loop: the products of two heads and their scores, and an optimizer.

`BareLoop` is written for speed: hand-written gradients in persistent buffers, one exponential for
both directions, one positive per row, no protection, no progress reports. `AutogradLoop` is the
straightforward version. Shapes: B rows of a batch, N of the dataset, E width of the embeddings, I
and J of the two sides.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

_TEMPERATURE = 0.07


@dataclass(frozen=True)
class Sides:
    """Both sides of a dataset in memory, row by row."""

    first_NI: Tensor
    second_NJ: Tensor

    def __len__(self) -> int:
        return len(self.first_NI)


def batches(rows: int, batch: int, updates: int, seed: int) -> Iterator[Tensor]:
    """Yield row numbers of each batch, shuffled as in a real loop, over endless epochs."""
    generator = torch.Generator().manual_seed(seed)
    done = 0
    while done < updates:
        order_N = torch.randperm(rows, generator=generator)
        for start in range(0, rows - rows % batch, batch):
            if done == updates:
                return
            yield order_N[start : start + batch]
            done += 1


class AutogradLoop:
    """Two heads under symmetric InfoNCE and fused AdamW, differentiated by torch."""

    def __init__(self, sides: Sides, width: int) -> None:
        self._sides = sides
        self.heads = tuple(
            nn.Parameter(torch.eye(width, rows.shape[1]))
            for rows in (sides.first_NI, sides.second_NJ)
        )
        self._optimizer = torch.optim.AdamW(self.heads, lr=1e-3, fused=True)

    def update(self, index_B: Tensor) -> None:
        """Do one update on these rows."""
        self._optimizer.zero_grad(set_to_none=True)
        self._gradients(self._sides.first_NI[index_B], self._sides.second_NJ[index_B])
        self._optimizer.step()

    def _gradients(self, first_BI: Tensor, second_BJ: Tensor) -> None:
        first_BE = normalize(first_BI @ self.heads[0].mT)
        second_BE = normalize(second_BJ @ self.heads[1].mT)
        scores_BB = first_BE @ second_BE.mT / _TEMPERATURE
        own_B = torch.arange(len(first_BI))
        loss = (cross_entropy(scores_BB, own_B) + cross_entropy(scores_BB.mT, own_B)) / 2
        loss.backward()  # type: ignore[no-untyped-call]


class BareLoop(AutogradLoop):
    """The same update with hand-written gradients: seven products and few passes over memory."""

    @torch.no_grad()
    def _gradients(self, first_BI: Tensor, second_BJ: Tensor) -> None:
        heads = self.heads
        units = [_unit(first_BI @ heads[0].mT), _unit(second_BJ @ heads[1].mT)]
        (first_BE, first_lengths_B), (second_BE, second_lengths_B) = units
        by_scores_BB = _score_gradient(first_BE @ second_BE.mT)
        by_first_BE = by_scores_BB @ second_BE
        by_second_BE = by_scores_BB.mT @ first_BE
        heads[0].grad = _through(by_first_BE, first_BE, first_lengths_B).mT @ first_BI
        heads[1].grad = _through(by_second_BE, second_BE, second_lengths_B).mT @ second_BJ


def _unit(raw_BE: Tensor) -> tuple[Tensor, Tensor]:
    """Normalise in place. Return the rows and their former lengths (B × 1)."""
    lengths_B1 = torch.linalg.vector_norm(raw_BE, dim=1, keepdim=True)
    return raw_BE.div_(lengths_B1), lengths_B1


def _score_gradient(scores_BB: Tensor) -> Tensor:
    """Compute ∂loss/∂scores in place. Scores of unit vectors are at most 1, so the maximum need not
    be subtracted."""
    shares_BB = scores_BB.sub_(1).div_(_TEMPERATURE).exp_()
    by_row_B1 = shares_BB.sum(1, keepdim=True).reciprocal_()
    by_column_B = shares_BB.sum(0).reciprocal_()
    shares_BB.mul_(by_row_B1 + by_column_B)
    shares_BB.diagonal().sub_(2)
    return shares_BB.mul_(1 / (2 * len(scores_BB) * _TEMPERATURE))


def _through(by_unit_BE: Tensor, unit_BE: Tensor, lengths_B1: Tensor) -> Tensor:
    """Propagate the gradient through the normalisation, in place."""
    along_B1 = torch.linalg.vecdot(by_unit_BE, unit_BE).unsqueeze(1)
    return by_unit_BE.addcmul_(unit_BE, along_B1, value=-1).div_(lengths_B1)
