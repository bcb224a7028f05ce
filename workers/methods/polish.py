"""Polish the closed form: InfoNCE on rows that are drawn from moments, within its directions.

Shapes: B rows of a batch, D datasets of a pair, K directions, L = 2 K numbers of both sides, E width of the
embeddings, F width of a feature without the constant 1.

The closed form maximises the spectral loss, which has neither unit length nor temperature. InfoNCE
has both and needs rows. They are drawn from the Gaussian that the closed form assumes. In the directions
H (K × F) of the two modalities of a pair, rows x = H_u (x_u − μ_u) and y = H_v (x_v − μ_v) have

    cov x = H_u (C_u + e_u I) H_uᵀ,   cov y = H_v (C_v + e_v I) H_vᵀ,   cov (x, y) = H_u X H_vᵀ    (16)

with the covariances and the cross-covariance of the pair's datasets, by weight, and the ridges e. Without ridges,
directions in which features hardly vary are scaled up by whitening, and their sampling error counts as agreement
(docs/decisions/0047). All rows of a batch are of one dataset and lie about its means, as rows do in training. What is
polished is T (E × (K + 1)) in

    z = T [H (x − μ), 1]

with H fixed. What earlier datasets did not share lies outside of H, and sampled noise cannot pull a
head there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from workers.methods.sampled_replay import covariance_root
from workers.model.loss import symmetric_info_nce, unit
from workers.nullspace.centred import CentredMoments, PairNames
from workers.nullspace.closed_form import NO_CORRELATION, Directions, whitened

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


@dataclass(frozen=True)
class ReducedPair:
    """A pair in K directions: the covariance (16) of both sides, and the means of each of its datasets.

    Means are about those of the modalities.
    """

    pair: PairNames
    covariance_LL: Tensor
    means_DL: Tensor

    @property
    def correlations(self) -> Tensor:
        """Of the two sides in each direction (K)."""
        first_K, second_K = self.covariance_LL.diagonal().chunk(2)
        sizes_K = (first_K * second_K).clamp(min=1e-300).sqrt()
        return self.covariance_LL.diagonal(len(first_K)) / sizes_K

    @property
    def correlates(self) -> bool:
        """Whether the two sides correlate in any direction: not if one of them hardly varies."""
        return bool((self.correlations.abs() > NO_CORRELATION).any())

    def at(self, kept_K: Tensor) -> "ReducedPair":
        """In some of the directions."""
        kept_L = kept_K.repeat(2)
        return ReducedPair(
            self.pair, self.covariance_LL[kept_L][:, kept_L], self.means_DL[:, kept_L]
        )

    def limited(self, count: float) -> "ReducedPair":
        """With the `count` leading canonical correlations. Beyond, the two sides agree by chance."""
        directions = len(self.covariance_LL) // 2
        if count >= directions:
            return self
        first, second = slice(0, directions), slice(directions, None)
        first_KK = covariance_root(self.covariance_LL[first, first])
        second_KK = covariance_root(self.covariance_LL[second, second])
        left_KK, values_K, right_KK = torch.linalg.svd(
            whitened(self.covariance_LL[first, second], first_KK, second_KK)
        )
        values_K[int(count) :] = 0
        cross_KK = first_KK @ (left_KK * values_K) @ right_KK @ second_KK.mT
        covariance_LL = self.covariance_LL.clone()
        covariance_LL[first, second], covariance_LL[second, first] = cross_KK, cross_KK.mT
        return replace(self, covariance_LL=covariance_LL)


@dataclass(frozen=True)
class Polished:
    """The polished mixing, the loss of the last batch and the number of updates."""

    mixing: Mixing
    loss: float
    updates: int


def reduced(pair: PairNames, moments: CentredMoments, group: Directions) -> ReducedPair:
    """The moments of a pair in the directions of a group."""
    first, second = pair
    first_KF, second_KG = group.heads[first], group.heads[second]
    cross_KK = first_KF @ moments.cross_FG @ second_KG.mT / moments.weight
    first_KK = first_KF @ moments.first_FF @ first_KF.mT / moments.weight
    second_KK = second_KG @ moments.second_GG @ second_KG.mT / moments.weight
    first_KK += group.ridges[first] * first_KF @ first_KF.mT
    second_KK += group.ridges[second] * second_KG @ second_KG.mT
    rows = torch.cat([first_KK, cross_KK], dim=1), torch.cat([cross_KK.mT, second_KK], dim=1)
    first_DK = (moments.first_means_DF - group.means[first]) @ first_KF.mT
    second_DK = (moments.second_means_DG - group.means[second]) @ second_KG.mT
    means_DL = torch.cat([first_DK, second_DK], dim=1)
    # In an order that rounding changes only where two datasets have the same means on both sides. Their own
    # (`centred._netted`) begins with the first side, and datasets may have the same items there.
    return ReducedPair(pair, torch.cat(rows), means_DL[means_DL.sum(1).argsort()])


@dataclass(frozen=True)
class _Sampler:
    """Rows of a dataset: noise times `root_LL`, about `mean_L` (float32)."""

    pair: PairNames
    root_LL: Tensor
    mean_L: Tensor

    def draw(self, rows: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows of both sides (B × K)."""
        noise_BL = torch.randn(rows, len(self.mean_L), generator=random)
        first_BK, second_BK = torch.addmm(self.mean_L, noise_BL, self.root_LL.mT).chunk(2, dim=1)
        return first_BK, second_BK


def _samplers(pair: ReducedPair) -> list[_Sampler]:
    """One for each dataset."""
    root_LL = covariance_root(pair.covariance_LL).float()
    return [_Sampler(pair.pair, root_LL, mean_L) for mean_L in pair.means_DL.float()]


def polished(start: Mixing, pairs: Sequence[ReducedPair], settings: PolishSettings) -> Polished:
    """Train T by InfoNCE on sampled rows; the mean over the second half of the updates.

    Each dataset of each pair has the same number of updates, in random order. A function of its arguments: the same
    pairs in the same order give the same bits. The start itself if `updates` or the pairs leave no update to make.
    """
    random = torch.Generator().manual_seed(settings.seed)
    samplers = [each for pair in pairs for each in _samplers(pair)] * settings.updates
    parameters = {name: nn.Parameter(mixing.float()) for name, mixing in start.items()}
    states = {name: _AdamState.of(parameter) for name, parameter in parameters.items()}
    means = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    positive_BB = torch.eye(settings.batch_size, dtype=torch.bool)
    averaged, loss = 0, torch.zeros(())
    order = torch.randperm(len(samplers), generator=random).tolist()
    for update, number in enumerate(order, start=1):
        names, rows = samplers[number].pair, samplers[number].draw(settings.batch_size, random)
        embeddings = [
            unit(nn.functional.linear(rows_BK, parameters[name][:, :-1], parameters[name][:, -1]))
            for name, rows_BK in zip(names, rows, strict=True)
        ]
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
