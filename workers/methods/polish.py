"""Polish the closed form: InfoNCE on rows that are drawn from moments, within its directions.

Shapes: B rows of a batch, D datasets of a pair, K directions, E width of the embeddings, F width of a
feature without the constant 1.

The closed form maximises the spectral loss, which has neither unit length nor temperature. InfoNCE
has both and needs rows. They are drawn from the Gaussian that the closed form assumes. With the
directions H (K × F) of the two modalities of a pair, rows x = H_u (x_u − μ_u), y = H_v (x_v − μ_v) have

    cov x = H_u (C_u + e_u I) H_uᵀ,   cov y = H_v (C_v + e_v I) H_vᵀ,   cov (x, y) = H_u X_uv H_vᵀ    (15)

with the ridges e. Without these, directions in which features hardly vary are scaled up by whitening, and their
sampling error counts as agreement (docs/decisions/0047). All rows of a batch are of one dataset and lie about its
means, as rows do in training. What is polished is T (E × (K + 1)) in

    z = T [H (x − μ), 1]

with H fixed. What earlier datasets did not share lies outside of H, and sampled noise cannot pull a
head there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from workers.methods.sampled_replay import covariance_root
from workers.model.loss import symmetric_info_nce, unit
from workers.nullspace.centred import CentredMoments, PairNames
from workers.nullspace.closed_form import Directions, whitened

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
    """A pair in K directions: (15), and the means of each of its datasets about those of its modalities."""

    pair: PairNames
    first_KK: Tensor
    second_KK: Tensor
    cross_KK: Tensor
    first_means_DK: Tensor
    second_means_DK: Tensor

    @property
    def correlations(self) -> Tensor:
        """Of the two sides in each direction (K)."""
        variances_K = self.first_KK.diagonal() * self.second_KK.diagonal()
        return self.cross_KK.diagonal() / variances_K.clamp(min=1e-300).sqrt()

    def at(self, kept_K: Tensor) -> "ReducedPair":
        """In some of the directions."""
        return ReducedPair(
            self.pair,
            self.first_KK[kept_K][:, kept_K],
            self.second_KK[kept_K][:, kept_K],
            self.cross_KK[kept_K][:, kept_K],
            self.first_means_DK[:, kept_K],
            self.second_means_DK[:, kept_K],
        )

    def limited(self, count: float) -> "ReducedPair":
        """With correlation in its `count` leading canonical directions only; what is beyond is chance."""
        if count >= len(self.cross_KK):
            return self
        first_KK, second_KK = covariance_root(self.first_KK), covariance_root(self.second_KK)
        left_KL, values_L, right_LK = torch.linalg.svd(whitened(self.cross_KK, first_KK, second_KK))
        values_L = values_L * (torch.arange(len(values_L)) < count)
        cross_KK = first_KK @ (left_KL * values_L) @ right_LK @ second_KK.mT
        return replace(self, cross_KK=cross_KK)


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
    weight = moments.weight
    return ReducedPair(
        pair,
        first_KF @ moments.first_FF @ first_KF.mT / weight
        + group.ridges[first] * first_KF @ first_KF.mT,
        second_KG @ moments.second_GG @ second_KG.mT / weight
        + group.ridges[second] * second_KG @ second_KG.mT,
        first_KF @ moments.cross_FG @ second_KG.mT / weight,
        (moments.first_means_DF - group.means[first]) @ first_KF.mT,
        (moments.second_means_DG - group.means[second]) @ second_KG.mT,
    )


@dataclass(frozen=True)
class _Sampler:
    """Rows of a dataset: noise times `root_LL` (both sides: L is 2 K), about `mean_L`."""

    pair: PairNames
    root_LL: Tensor
    mean_L: Tensor

    def draw(self, rows: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows of both sides (B × K)."""
        noise_BL = torch.randn(rows, len(self.mean_L), generator=random)
        first_BK, second_BK = torch.addmm(self.mean_L, noise_BL, self.root_LL.mT).chunk(2, dim=1)
        return first_BK, second_BK


def _samplers(pair: ReducedPair) -> list[_Sampler]:
    """One for each dataset (float32)."""
    top = torch.cat([pair.first_KK, pair.cross_KK], dim=1)
    bottom = torch.cat([pair.cross_KK.mT, pair.second_KK], dim=1)
    root_LL = covariance_root(torch.cat([top, bottom])).float()
    means_DL = torch.cat([pair.first_means_DK, pair.second_means_DK], dim=1).float()
    return [_Sampler(pair.pair, root_LL, mean_L) for mean_L in means_DL]


def polished(start: Mixing, pairs: Sequence[ReducedPair], settings: PolishSettings) -> Polished:
    """Train T by InfoNCE on sampled rows; the mean over the second half of the updates.

    Each dataset of each pair has the same number of updates, in random order. A function of its arguments: the same
    pairs in the same order give the same bits. The start itself if `updates` or the pairs leave no update to make.
    """
    random = torch.Generator().manual_seed(settings.seed)
    samplers = [each for pair in pairs for each in _samplers(pair)]
    turns = [each for each, _ in product(samplers, range(settings.updates))]
    parameters = {name: nn.Parameter(mixing.float()) for name, mixing in start.items()}
    states = {name: _AdamState.of(parameter) for name, parameter in parameters.items()}
    means = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    positive_BB = torch.eye(settings.batch_size, dtype=torch.bool)
    averaged, loss = 0, torch.zeros(())
    for update, turn in enumerate(torch.randperm(len(turns), generator=random).tolist(), start=1):
        names = turns[turn].pair
        embeddings = [
            unit(nn.functional.linear(rows_BK, parameters[name][:, :-1], parameters[name][:, -1]))
            for name, rows_BK in zip(
                names, turns[turn].draw(settings.batch_size, random), strict=True
            )
        ]
        loss = symmetric_info_nce((embeddings[0], embeddings[1]), positive_BB, settings.temperature)
        gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
        for name, gradient in zip(names, gradients, strict=True):
            states[name].step(parameters[name], gradient, settings.learning_rate)
        if 2 * update > len(turns):
            averaged += 1
            for name, mean in means.items():
                mean.lerp_(parameters[name].detach(), 1 / averaged)
    mixing = {name: mean.double() for name, mean in means.items()} if averaged else dict(start)
    return Polished(mixing, float(loss.detach()), len(turns))


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
