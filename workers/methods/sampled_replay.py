"""Sampled replay: InfoNCE on rows that never were, drawn from an earlier pair's moments.

Shapes: S sampled rows, O of them drawn in this process, B in a batch, L of a batch in this process,
E width of the embeddings, I and J widths of what two heads read.

Mean, covariance and cross-covariance of a pair are in its pooled moments (the constant 1 of every
row is the mean's column). Gaussian rows with these moments keep what moment replay's quadratic
loss does not see: unit length and the temperature of the very loss that is trained. Rows are drawn
once per dataset, each process some of them; an update takes a batch of one earlier pair at a time, of
which each process computes its part.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.methods.port import Lesson, Peers
from workers.model.loss import Everywhere, symmetric_info_nce, unit
from workers.model.pair import PairInEigenCoordinates, rotate
from workers.nullspace.moments import PairMoments

SAMPLED_ROWS = 2048
# The products behind the moments are float32: this share of the mean square is their rounding.
_ROUNDING = 1e-5
# Shares of the mean variance that are added to all, the least that will do.
_JITTERS = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class _Side:
    """One side of the rows of a pair: rotated inputs of a head in training, or unit embeddings."""

    head: int | None
    rows: Tensor

    def embeddings(self, pair: PairInEigenCoordinates, index_B: Tensor) -> Tensor:
        rows = self.rows[index_B]
        match self.head:
            case 0:
                return unit(pair.first_outputs(rows))
            case 1:
                return unit(pair.second(rows))
            case _:
                return rows

    def of_all(self, own_LE: Tensor, index_B: Tensor, peers: Peers) -> Tensor:
        """Embeddings of the whole batch, without a graph; only those that move have to travel."""
        if self.head is None:
            return self.rows[index_B]
        return peers.gather(own_LE.detach(), len(index_B))


class SampledReplay:
    """Batches of sampled rows of the earlier pairs that share a modality with the one in training."""

    def __init__(self, lesson: Lesson, pair: PairInEigenCoordinates) -> None:
        self._lesson, self._pair, self._like_EI = lesson, pair, pair.second.start_EI
        self.random = torch.Generator().manual_seed(lesson.seed)
        self._touching = lesson.memory.touching(lesson.pair)
        self._datasets = torch.tensor(
            [float(lesson.memory.datasets_of(known)) for known, _ in self._touching]
        )
        self._seeds = torch.randint(2**62, (len(self._touching),), generator=self.random)
        self._sampled: dict[int, tuple[_Side, _Side]] = {}

    def loss(self, peers: Peers) -> Tensor:
        """InfoNCE of a batch of one dataset's pair, drawn at random, times the number of datasets.

        Of that this process's share, times the number of processes: gradients are averaged.
        """
        if not self._touching:
            return self._like_EI.new_zeros(())
        training = self._lesson.training
        chosen = int(torch.multinomial(self._datasets, 1, generator=self.random))
        index_B = torch.randint(SAMPLED_ROWS, (training.batch_size,), generator=self.random)
        index_B = index_B.to(self._like_EI.device)
        index_L = index_B[peers.own(len(index_B))]
        first, second = self._of(chosen, peers)
        first_LE, second_LE = (side.embeddings(self._pair, index_L) for side in (first, second))
        everywhere = Everywhere(
            first.of_all(first_LE, index_B, peers),
            second.of_all(second_LE, index_B, peers),
            lambda rows_LX: peers.gather(rows_LX, len(index_B)),
        )
        share = symmetric_info_nce(
            (first_LE, second_LE),
            index_L[:, None] == index_B,
            training.temperature,
            everywhere if peers.count > 1 else None,
        )
        return share * self._datasets.sum() * peers.count

    def _of(self, number: int, peers: Peers) -> tuple[_Side, _Side]:
        """The rows of a pair, drawn when they are first asked for: the first update waits for those
        of one pair. Each has a generator of its own, so the order of asking changes nothing."""
        if number not in self._sampled:
            self._sampled[number] = self._drawn(number, peers)
        return self._sampled[number]

    def _drawn(self, number: int, peers: Peers) -> tuple[_Side, _Side]:
        pair, moments = self._touching[number]
        random = torch.Generator().manual_seed(int(self._seeds[number]))
        rows_OK = gaussian_rows(moments, SAMPLED_ROWS, random, peers.own(SAMPLED_ROWS))
        width = moments.cross_IJ.shape[0]
        parts = zip(pair.modalities, (rows_OK[:, :width], rows_OK[:, width:]), strict=True)
        first, second = (self._side(modality, rows_OI, peers) for modality, rows_OI in parts)
        return first, second

    def _side(self, modality: str, rows_OI: Tensor, peers: Peers) -> _Side:
        """From this process's rows to all of them, as an update wants them."""
        names = self._lesson.pair.modalities
        number = names.index(modality) if modality in names else None
        if number is not None:
            head = (self._pair.first, self._pair.second)[number]
            wanted = rotate(rows_OI, head.space)
        else:
            outputs_EE = self._pair.second.space.outputs.vectors_II
            weight_EI = outputs_EE.mT @ self._lesson.heads.weights[modality].double()
            wanted = unit(rows_OI @ weight_EI.mT.to(rows_OI))
        return _Side(number, peers.gather(wanted.to(self._like_EI), SAMPLED_ROWS))


def gaussian_rows(
    moments: PairMoments, rows: int, random: torch.Generator, own: slice = slice(None)
) -> Tensor:
    """Rows (S × (I + J), float32) of both sides with the mean and covariance of the moments; of `rows`
    that are drawn alike everywhere those in `own`.

    The last column of either side is the constant 1 of homogeneous features.
    """
    mean = moments.mean
    top = torch.cat([mean.first.sum_II, mean.cross_IJ], dim=1)
    bottom = torch.cat([mean.cross_IJ.mT, mean.second.sum_II], dim=1)
    second_KK = torch.cat([top, bottom])
    mean_K = second_KK[:, -1]
    rounding = _ROUNDING * float(second_KK.diagonal().mean())
    root_KK = _root(second_KK - torch.outer(mean_K, mean_K), rounding)
    noise_SK = torch.randn(rows, len(mean_K), generator=random, dtype=torch.float64)
    rows_SK: Tensor = noise_SK[own].float() @ root_KK.mT.float() + mean_K.float()
    constants = [mean.cross_IJ.shape[0] - 1, len(mean_K) - 1]
    rows_SK[:, constants] = 1.0
    return rows_SK


def _root(covariance_KK: Tensor, rounding: float) -> Tensor:
    """L with L Lᵀ = the covariance and a little of everything: moments may have no full rank."""
    mean_variance = max(float(covariance_KK.diagonal().mean()), 0.0)
    eye_KK = torch.eye(len(covariance_KK), dtype=covariance_KK.dtype)
    for share in _JITTERS:
        jitter = share * mean_variance + rounding
        factor = torch.linalg.cholesky_ex(covariance_KK + jitter * eye_KK)
        if not int(factor.info):
            root_KK: Tensor = factor.L
            return root_KK
    raise ValueError("the moments of a pair are no moments: their covariance is not positive")
