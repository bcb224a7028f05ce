"""Sampled replay: InfoNCE on synthetic rows, drawn from a Gaussian with an earlier pair's moments.

Shapes: S sampled rows, O of them drawn in this process, B in a batch, L of a batch in this process,
E width of the embeddings, I and J widths of what two heads read, K = I + J.

The pooled moments of a pair hold its mean (the constant 1 of every row makes it a column), its
covariance and its cross-covariance. InfoNCE on Gaussian rows with these moments includes what moment
replay's quadratic loss leaves out: unit length, and the temperature of the loss that is trained. Rows
are drawn once per dataset, some in each process. An update takes a batch of one earlier pair, of which
each process computes its part.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cmcl.contract.modality import ModalityPair
from workers.methods.method import ReplicaGroup, TrainingContext
from workers.methods.polish import covariance_root
from workers.model.loss import Everywhere, symmetric_info_nce, unit
from workers.model.memory import Memory
from workers.model.pair import PairInEigenCoordinates, rotate
from workers.nullspace.moments import PairMoments

SAMPLED_ROWS = 2048
# The products behind the moments are float32. This share of the mean square is their rounding.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class _Side:
    """One side of the rows of a pair: rotated inputs of a head in training, or unit embeddings."""

    head: int | None  # 0 or 1: head of the pair in training; None: a partner that does not move
    rows: Tensor  # S × I for a head in training, S × E for a partner

    def embeddings(self, pair: PairInEigenCoordinates, index_B: Tensor) -> Tensor:
        rows = self.rows[index_B]
        match self.head:
            case 0:
                return unit(pair.first_outputs(rows))
            case 1:
                return unit(pair.second(rows))
            case _:
                return rows

    def of_all(self, own_LE: Tensor, index_B: Tensor, group: ReplicaGroup) -> Tensor:
        """Embeddings of the whole batch, without a graph. Only those that move must be gathered."""
        if self.head is None:
            return self.rows[index_B]
        return group.gather(own_LE.detach(), len(index_B))


def datasets_of(memory: Memory, pair: ModalityPair) -> int:
    """Number of datasets of this pair, in either order."""
    first, second = sorted(pair.modalities)
    return memory.datasets.get((first, second), 0)


def touching(memory: Memory, pair: ModalityPair) -> list[tuple[ModalityPair, PairMoments]]:
    """All pairs of the memory that share a modality with `pair`, the shared one first.

    `pair` itself keeps its order.
    """
    found = []
    for names, moments in memory.by_pair.items():
        shared = set(names) & set(pair.modalities)
        known, oriented = ModalityPair(first=names[0], second=names[1]), moments
        if known.first != pair.first and (known.first not in shared or len(shared) == 2):
            known, oriented = known.swapped(), moments.swapped()
        if shared:
            found.append((known, oriented))
    return found


class SampledReplay:
    """Batches of sampled rows of the earlier pairs that share a modality with the one in training."""

    def __init__(self, context: TrainingContext, pair: PairInEigenCoordinates) -> None:
        self._context, self._pair, self._like_EI = context, pair, pair.second.start_EI
        self.random = torch.Generator().manual_seed(context.seed)
        # Earlier pairs that share a head with this one; scores of others cannot change.
        self._touching = touching(context.memory, context.pair)
        self._datasets = torch.tensor(
            [float(datasets_of(context.memory, known)) for known, _ in self._touching]
        )
        self._seeds = torch.randint(2**62, (len(self._touching),), generator=self.random)
        self._sampled: dict[int, tuple[_Side, _Side]] = {}

    def loss(self, group: ReplicaGroup) -> Tensor:
        """InfoNCE of a batch of one dataset's pair, chosen at random, times the number of datasets.

        The expectation is the sum over all datasets. Returned is this process's share, times the number
        of processes: gradients are averaged.
        """
        if not self._touching:
            return self._like_EI.new_zeros(())
        training = self._context.training
        # A pair is chosen with probability (its datasets / all datasets). Times all datasets that
        # makes the expectation Σ over pairs of (its datasets · its loss).
        chosen = int(torch.multinomial(self._datasets, 1, generator=self.random))
        index_B = torch.randint(SAMPLED_ROWS, (training.batch_size,), generator=self.random)
        index_B = index_B.to(self._like_EI.device)
        index_L = index_B[group.own(len(index_B))]
        # All processes draw the same numbers, and each takes its slice of the batch.
        first, second = self._of(chosen, group)
        first_LE, second_LE = (side.embeddings(self._pair, index_L) for side in (first, second))
        everywhere = Everywhere(
            first.of_all(first_LE, index_B, group),
            second.of_all(second_LE, index_B, group),
            lambda rows_LX: group.gather(rows_LX, len(index_B)),
        )
        share = symmetric_info_nce(
            (first_LE, second_LE),
            # Rows are drawn with replacement: repetitions of a row are positives of each other.
            index_L[:, None] == index_B,
            training.temperature,
            everywhere if group.count > 1 else None,
        )
        return share * self._datasets.sum() * group.count

    def _of(self, number: int, group: ReplicaGroup) -> tuple[_Side, _Side]:
        """The rows of a pair, drawn when they are first needed, so that the first update waits for one
        pair only. Each has a generator of its own: the order in which pairs are chosen is irrelevant."""
        if number not in self._sampled:
            self._sampled[number] = self._drawn(number, group)
        return self._sampled[number]

    def _drawn(self, number: int, group: ReplicaGroup) -> tuple[_Side, _Side]:
        pair, moments = self._touching[number]
        random = torch.Generator().manual_seed(int(self._seeds[number]))
        rows_OK = gaussian_rows(moments, SAMPLED_ROWS, random, group.own(SAMPLED_ROWS))
        width = moments.cross_IJ.shape[0]
        parts = zip(pair.modalities, (rows_OK[:, :width], rows_OK[:, width:]), strict=True)
        first, second = (self._side(modality, rows_OI, group) for modality, rows_OI in parts)
        return first, second

    def _side(self, modality: str, rows_OI: Tensor, group: ReplicaGroup) -> _Side:
        """Gather this process's rows to all rows, in the form that an update reads."""
        names = self._context.pair.modalities
        number = names.index(modality) if modality in names else None
        if number is not None:
            head = (self._pair.first, self._pair.second)[number]
            wanted = rotate(rows_OI, head.space)
        else:
            # A partner that is not in training: its embeddings are constant. z = Vᵀ W x, in the output
            # basis of the pair in training, at unit length.
            outputs_EE = self._pair.second.space.outputs.vectors_II
            weight_EI = outputs_EE.mT @ self._context.heads.weights[modality].double()
            wanted = unit(rows_OI @ weight_EI.mT.to(rows_OI))
        return _Side(number, group.gather(wanted.to(self._like_EI), SAMPLED_ROWS))


def gaussian_rows(
    moments: PairMoments, rows: int, random: torch.Generator, own: slice = slice(None)
) -> Tensor:
    """Rows (S × K, float32) of both sides with the mean and covariance of the moments.

    Every process draws the same `rows` rows and returns those in `own`. The last column of either
    side is the constant 1 of homogeneous features.
    """
    # The mean of [x_u, x_v] [x_u, x_v]ᵀ in blocks (K × K). Its last column, that of the constant of v,
    # is the mean of [x_u, x_v]; the covariance is the rest minus μ μᵀ.
    mean = moments.mean
    top = torch.cat([mean.first.sum_II, mean.cross_IJ], dim=1)
    bottom = torch.cat([mean.cross_IJ.mT, mean.second.sum_II], dim=1)
    second_KK = torch.cat([top, bottom])
    mean_K = second_KK[:, -1]
    # Where C is smaller than the rounding of E x xᵀ, it may have negative eigenvalues.
    rounding = _ROUNDING * float(second_KK.diagonal().mean())
    root_KK = covariance_root(second_KK - torch.outer(mean_K, mean_K), rounding)
    noise_SK = torch.randn(rows, len(mean_K), generator=random, dtype=torch.float64)
    # With L Lᵀ = C and n ~ N(0, I), L n + μ ~ N(μ, C).
    rows_SK: Tensor = noise_SK[own].float() @ root_KK.mT.float() + mean_K.float()
    constants = [mean.cross_IJ.shape[0] - 1, len(mean_K) - 1]
    # Their variance is zero but for the jitter: restore them exactly.
    rows_SK[:, constants] = 1.0
    return rows_SK
