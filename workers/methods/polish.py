"""Polish the closed form: InfoNCE on rows that are drawn from moments, within its directions.

Shapes: B rows of a batch, S sampled rows, K directions, E width of the embeddings, F width of a
feature without the constant 1.

The closed form maximises the spectral loss, which has neither unit length nor temperature. InfoNCE
has both and needs rows. A Gaussian with a pair's moments has them, and in the K leading canonical
directions such rows are K + 1 numbers (with the constant 1): what is polished is T (E × (K + 1)) in

    z = T [H (x − μ), 1]

with the directions H (K × F) of a modality fixed. What earlier datasets did not share lies outside of
H, and sampled noise cannot pull a head there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from workers.methods.sampled_replay import gaussian_rows
from workers.model.loss import symmetric_info_nce, unit
from workers.nullspace.centred import CentredMoments, PairNames
from workers.nullspace.closed_form import Directions
from workers.nullspace.moments import PairMoments, SecondMoment

# A product of two variances below this share of their sum is rounding.
_HARDLY = 1e-12

Mixing = dict[str, Tensor]
"""By modality: T, E × (K + 1)."""


@dataclass(frozen=True)
class PolishSettings:
    """`updates` per dataset, of which the second half is averaged, in batches of `batch_size`."""

    updates: int
    learning_rate: float
    batch_size: int
    temperature: float
    seed: int
    sampled_rows: int = 2048


@dataclass(frozen=True)
class ReducedPair:
    """A pair in K directions: moments of rows [H (x − μ), 1] of both sides; it stands for `datasets`."""

    pair: PairNames
    moments: PairMoments
    datasets: float

    @property
    def correlations(self) -> Tensor:
        """Of the two sides in each direction (K); 0 where they hardly vary."""
        first_II, second_II = self.moments.first.sum_II, self.moments.second.sum_II
        first_K, second_K = first_II[:-1, -1], second_II[:-1, -1]
        covariance_K = self.moments.cross_IJ.diagonal()[:-1] - first_K * second_K
        variances_K = first_II.diagonal()[:-1] - first_K.square()
        variances_K = variances_K * (second_II.diagonal()[:-1] - second_K.square())
        varies_K = variances_K > _HARDLY * variances_K.sum()
        return torch.where(varies_K, covariance_K / variances_K.clamp(min=1e-300).sqrt(), 0.0)

    def at(self, kept_K: Tensor) -> "ReducedPair":
        """In some of the directions, with the constant 1."""
        kept_I = torch.cat([kept_K, kept_K.new_ones(1)])
        sums = (self.moments.first.sum_II, self.moments.second.sum_II, self.moments.cross_IJ)
        first_II, second_II, cross_II = (each_II[kept_I][:, kept_I] for each_II in sums)
        moments = PairMoments(SecondMoment(1, first_II), SecondMoment(1, second_II), cross_II)
        return replace(self, moments=moments)


@dataclass(frozen=True)
class Polished:
    """The polished mixing, the loss of the last batch and the number of updates."""

    mixing: Mixing
    loss: float
    updates: int


def reduced(
    pair: PairNames, moments: CentredMoments, group: Directions, datasets: float
) -> ReducedPair:
    """The moments of a pair in the directions of a group."""
    first_KF, second_KG = (group.heads[name] for name in pair)
    weight = moments.weight
    # Means of a pair's rows, about those of their modalities.
    first_K = first_KF @ (moments.first_mean_F / weight - group.means[pair[0]])
    second_K = second_KG @ (moments.second_mean_G / weight - group.means[pair[1]])
    first = _homogeneous(first_KF @ moments.first_FF @ first_KF.mT / weight, first_K, first_K)
    second = _homogeneous(second_KG @ moments.second_GG @ second_KG.mT / weight, second_K, second_K)
    cross = _homogeneous(first_KF @ moments.cross_FG @ second_KG.mT / weight, first_K, second_K)
    return ReducedPair(
        pair, PairMoments(SecondMoment(1, first), SecondMoment(1, second), cross), datasets
    )


def _homogeneous(covariance_KL: Tensor, first_K: Tensor, second_L: Tensor) -> Tensor:
    """E [x, 1] [y, 1]ᵀ from the covariance of x and y and their means."""
    top = torch.cat([covariance_KL + first_K.outer(second_L), first_K[:, None]], dim=1)
    bottom = torch.cat([second_L, second_L.new_ones(1)])[None]
    return torch.cat([top, bottom])


def polished(start: Mixing, pairs: Sequence[ReducedPair], settings: PolishSettings) -> Polished:
    """Train T by InfoNCE on sampled rows; the mean over the second half of the updates.

    A function of its arguments: the same pairs in the same order give the same bits. The start itself if
    `updates` or the pairs leave no update to make.
    """
    random = torch.Generator().manual_seed(settings.seed)
    sampled = [_sampled(one.moments, settings.sampled_rows, random) for one in pairs]
    order = _order(pairs, settings.updates, random)
    parameters = {name: nn.Parameter(mixing.float()) for name, mixing in start.items()}
    states = {name: _AdamState.of(parameter) for name, parameter in parameters.items()}
    means = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    averaged, loss = 0, torch.zeros(())
    for update, number in enumerate(order.tolist(), start=1):
        rows_B = torch.randint(settings.sampled_rows, (settings.batch_size,), generator=random)
        names = pairs[number].pair
        embeddings = [
            unit(rows_SK[rows_B] @ parameters[name].mT)
            for name, rows_SK in zip(names, sampled[number], strict=True)
        ]
        # A row that was drawn twice is a positive of itself.
        positive_BB = rows_B[:, None] == rows_B
        loss = symmetric_info_nce((embeddings[0], embeddings[1]), positive_BB, settings.temperature)
        gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
        for name, gradient in zip(names, gradients, strict=True):
            states[name].step(parameters[name], gradient, settings.learning_rate)
        if 2 * update > len(order):
            averaged += 1
            for name, mean in means.items():
                mean.lerp_(parameters[name].detach(), 1 / averaged)
    mixing = {name: mean.double() for name, mean in means.items()} if averaged else dict(start)
    return Polished(mixing, float(loss.detach()), len(order))


@dataclass(frozen=True)
class _AdamState:
    """Adam's running means of one parameter, for torch's functional form.

    The first `torch.optim.AdamW` of a process imports torch's compiler: 3.4 s of CPU.
    """

    mean: Tensor
    mean_square: Tensor
    steps: Tensor

    @classmethod
    def of(cls, parameter: Tensor) -> "_AdamState":
        zeros = torch.zeros_like(parameter)
        return cls(zeros, zeros.clone(), torch.zeros(()))

    @torch.no_grad()
    def step(self, parameter: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """Move the parameter in place, without weight decay."""
        adamw(
            [parameter],
            [gradient],
            [self.mean],
            [self.mean_square],
            [],
            [self.steps],
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=0.0,
            lr=learning_rate,
        )


def _order(pairs: Sequence[ReducedPair], updates: int, random: torch.Generator) -> Tensor:
    """Which pair each update takes: each for its share of the datasets, in random order."""
    datasets = torch.tensor([one.datasets for one in pairs], dtype=torch.float64)
    total = round(updates * float(datasets.sum()))
    # Boundaries between the pairs' updates, so that shares add up to the total.
    ends = (datasets.cumsum(0) / max(float(datasets.sum()), 1e-300) * total).round().long()
    counts = ends.diff(prepend=torch.zeros(1, dtype=torch.long))
    numbers = torch.arange(len(pairs)).repeat_interleave(counts)
    return numbers[torch.randperm(len(numbers), generator=random)]


def _sampled(moments: PairMoments, rows: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    rows_SK = gaussian_rows(moments, rows, random)
    width = len(moments.first.sum_II)
    return rows_SK[:, :width].contiguous(), rows_SK[:, width:].contiguous()


def with_constant(mixing_EK: Tensor) -> Tensor:
    """T of a mixing without an offset: E × (K + 1)."""
    return torch.nn.functional.pad(mixing_EK, (0, 1))


def weights(group: Directions, mixing: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The heads E × (F + 1) of z = T [H (x − μ), 1]."""
    found = {}
    for name, mixing_EK in mixing.items():
        weight_EI = group.weights(mixing_EK[:, :-1])[name]
        weight_EI[:, -1] += mixing_EK[:, -1].to(weight_EI)
        found[name] = weight_EI
    return found
