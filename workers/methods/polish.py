"""Polish the closed form: InfoNCE on rows that are drawn from moments, within its directions.

Shapes: B rows of a batch, D datasets of a pair, K directions, L = 2 K numbers of both sides, M = L + 2 with the
constant 1 of each, E width of the embeddings, F width of a feature without it.

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
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from workers.nullspace.centred import CentredMoments, PairNames
from workers.nullspace.closed_form import NO_CORRELATION, Directions, whitened
from workers.nullspace.threads import ahead, one_thread

# A row that is shorter has no direction (as in torch.nn.functional.normalize).
_NO_LENGTH = 1e-12
# Up to so many directions an update has one thread. A second one saves a quarter of its 1.5 ms where its core is idle,
# and costs ten times as much where another process is running there.
_FEW = 256
# Shares of the mean variance to add to all variances; the first that makes the covariance positive.
_JITTERS = (1e-3, 1e-2, 1e-1, 1.0)

Mixing = dict[str, Tensor]
"""By modality: T, E × (K + 1)."""


@dataclass(frozen=True)
class PolishSettings:
    """`updates` per dataset, and `most_updates` for all of them together; the second half is averaged."""

    updates: int
    most_updates: int
    learning_rate: float
    batch_size: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class ReducedSide:
    """One modality of a pair in K directions.

    `image_KF`: H C, without the ridge, float32. `means_DF` and `means_DK`: of its datasets, as features and about the
    modality's mean in the directions. `weights_D`: of these datasets, with sum 1.
    """

    image_KF: Tensor
    means_DF: Tensor
    means_DK: Tensor
    weights_D: Tensor

    def at(self, kept_K: Tensor) -> "ReducedSide":
        """In some of the directions."""
        return replace(self, image_KF=self.image_KF[kept_K], means_DK=self.means_DK[:, kept_K])

    def spread(self, head_KF: Tensor, mixing_EK: Tensor) -> Tensor:
        """The mean of z zᵀ (E × E) over the rows, with z = T [H (x − μ), 1]."""
        covariance_KK = self.image_KF.double() @ head_KF.mT
        means_DE = self._embedded(mixing_EK)
        within_EE = mixing_EK[:, :-1] @ covariance_KK @ mixing_EK[:, :-1].mT
        return within_EE + (means_DE.mT * self.weights_D) @ means_DE

    def agreement(self, old_EI: Tensor, mixing_EK: Tensor) -> Tensor:
        """The mean of z_old zᵀ (E × E) over the rows, with z_old = W_old [x, 1]."""
        old_EI = old_EI.to(self.image_KF)
        across_EE = (old_EI[:, :-1] @ self.image_KF.mT).double() @ mixing_EK[:, :-1].mT
        old_DE = self.means_DF @ old_EI[:, :-1].double().mT + old_EI[:, -1].double()
        means_DE = self._embedded(mixing_EK)
        return across_EE + (old_DE.mT * self.weights_D) @ means_DE

    def _embedded(self, mixing_EK: Tensor) -> Tensor:
        return self.means_DK @ mixing_EK[:, :-1].mT + mixing_EK[:, -1]


@dataclass(frozen=True)
class ReducedPair:
    """A pair in K directions: the covariance (16) of both sides, and the means of each of its datasets.

    Means are about those of the modalities. `rows`: of all its datasets.
    """

    pair: PairNames
    rows: int
    covariance_LL: Tensor
    means_DL: Tensor
    sides: tuple[ReducedSide, ReducedSide]

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
        first, second = self.sides
        return replace(
            self,
            covariance_LL=self.covariance_LL[kept_L][:, kept_L],
            means_DL=self.means_DL[:, kept_L],
            sides=(first.at(kept_K), second.at(kept_K)),
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
    """The moments of a pair in the directions of a group.

    Products with sums are in float32: these are of covariances that have a ridge, or of embeddings.
    """
    (first_KF, second_KG), weight = (group.heads[name] for name in pair), moments.weight
    cross_KG = first_KF.float() @ moments.cross_FG.float() / weight
    cross_KK = cross_KG.double() @ second_KG.mT

    def side(name: str, sum_FF: Tensor, means_DF: Tensor) -> tuple[ReducedSide, Tensor]:
        head_KF = group.heads[name]
        made = ReducedSide(
            head_KF.float() @ sum_FF.float() / weight,
            means_DF,
            (means_DF - group.means[name]) @ head_KF.mT,
            moments.weights_D / weight,
        )
        # H (C + e I) Hᵀ of (16), K × K.
        covariance_KK = made.image_KF.double() @ head_KF.mT
        return made, covariance_KK + group.ridges[name] * head_KF @ head_KF.mT

    first, first_KK = side(pair[0], moments.first_FF, moments.first_means_DF)
    second, second_KK = side(pair[1], moments.second_GG, moments.second_means_DG)
    blocks = torch.cat([first_KK, cross_KK], dim=1), torch.cat([cross_KK.mT, second_KK], dim=1)
    means_DL = torch.cat([first.means_DK, second.means_DK], dim=1)
    # In an order that rounding changes only where two datasets have the same means on both sides. Their own
    # (`centred._netted`) begins with the first side, and datasets may have the same items there.
    means_DL = means_DL[means_DL.sum(1).argsort()]
    return ReducedPair(pair, moments.rows, torch.cat(blocks), means_DL, (first, second))


@dataclass(frozen=True)
class _Sampler:
    """Rows of a dataset with the constant 1 on both sides: noise times `root_LM`, about `mean_M`."""

    pair: PairNames
    root_LM: Tensor
    mean_M: Tensor

    def draw(self, rows: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows of both sides (B × (K + 1))."""
        noise_BL = torch.randn(rows, len(self.root_LM), generator=random)
        first, second = torch.addmm(self.mean_M, noise_BL, self.root_LM).chunk(2, dim=1)
        return first, second


def _samplers(pair: ReducedPair) -> list[_Sampler]:
    """One for each dataset, in float32."""
    root_LL = covariance_root(pair.covariance_LL).float()
    root_LM = _with_columns(root_LL.mT, 0)
    return [
        _Sampler(pair.pair, root_LM, mean_M) for mean_M in _with_columns(pair.means_DL.float(), 1)
    ]


def _with_columns(rows_BL: Tensor, value: float) -> Tensor:
    """Rows with a column of this value after the K numbers of each side (B × M)."""
    sides = rows_BL.chunk(2, dim=1)
    return torch.cat([nn.functional.pad(side_BK, (0, 1), value=value) for side_BK in sides], dim=1)


def polished(start: Mixing, pairs: Sequence[ReducedPair], settings: PolishSettings) -> Polished:
    """Train T by InfoNCE on sampled rows; the mean over the second half of the updates.

    Each dataset of each pair has the same number of updates, in random order, of which the first `most_updates` are
    made. A function of its arguments: the same pairs in the same order give the same bits. The start itself if
    `updates` or the pairs leave no update to make.
    """
    is_small = all(mixing_EK.shape[1] <= _FEW + 1 for mixing_EK in start.values())
    with one_thread() if is_small else nullcontext():
        return _polished(start, pairs, settings)


def _polished(start: Mixing, pairs: Sequence[ReducedPair], settings: PolishSettings) -> Polished:
    random = torch.Generator().manual_seed(settings.seed)
    samplers = [each for pair in pairs for each in _samplers(pair)]
    # Contiguous: fused AdamW ignores strides.
    parameters = {
        name: mixing.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        for name, mixing in start.items()
    }
    states = {name: _AdamState.of(parameter) for name, parameter in parameters.items()}
    means = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    # Without an update the loss is 0, as that of a batch of one row.
    averaged, scores_BB = 0, torch.zeros(1, 1)
    all_updates = torch.randperm(settings.updates * len(samplers), generator=random)
    numbers = all_updates[: settings.most_updates].tolist()
    order = [samplers[number % len(samplers)] for number in numbers]
    drawn = ahead(each.draw(settings.batch_size, random) for each in order)
    for update, (sampler, rows) in enumerate(zip(order, drawn, strict=True), start=1):
        names = sampler.pair
        first, second = (parameters[name] for name in names)
        scores_BB, gradients = _gradients(rows, (first, second), settings.temperature)
        for name, gradient in zip(names, gradients, strict=True):
            states[name].step(parameters[name], gradient, settings.learning_rate)
        if 2 * update > len(order):
            averaged += 1
            for name, mean in means.items():
                mean.lerp_(parameters[name], 1 / averaged)
    assert averaged == len(order) - len(order) // 2, "not the second half was averaged"
    mixing = {name: mean.double() for name, mean in means.items()} if averaged else dict(start)
    return Polished(mixing, _info_nce(scores_BB), len(order))


def _info_nce(scores_BB: Tensor) -> float:
    """(1) of model/loss.py where a row has no positive but itself."""
    target_B = torch.arange(len(scores_BB))
    ways = (scores_BB, scores_BB.mT)
    return sum(float(nn.functional.cross_entropy(way, target_B)) for way in ways) / 2


def _gradients(
    rows: tuple[Tensor, Tensor], mixing: tuple[Tensor, Tensor], temperature: float
) -> tuple[Tensor, list[Tensor]]:
    """Scores (B × B) of rows with the constant (B × (K + 1)) under T of both sides, and the gradients of InfoNCE by T.

    By equations (2) and (3) of model/loss.py, without autograd, which takes twice as long with 256 directions.
    """
    outputs = [rows_BK @ mixing_EK.mT for rows_BK, mixing_EK in zip(rows, mixing, strict=True)]
    lengths = [output_BE.norm(dim=1, keepdim=True).clamp_(min=_NO_LENGTH) for output_BE in outputs]
    first_BE, second_BE = (
        output_BE.div_(length_B1) for output_BE, length_B1 in zip(outputs, lengths, strict=True)
    )
    scores_BB = (first_BE @ second_BE.mT).div_(temperature)
    # g of equation (2) there, over 2 B τ. A row is its only positive.
    pull_BB = scores_BB.softmax(1).add_(scores_BB.softmax(0))
    pull_BB.diagonal().sub_(2)
    pull_BB.div_(2 * temperature * len(pull_BB))
    slopes = pull_BB @ second_BE, pull_BB.mT @ first_BE
    gradients = []
    for unit_BE, slope_BE, length_B1, rows_BK in zip(
        (first_BE, second_BE), slopes, lengths, rows, strict=True
    ):
        # Of z = y / |y|: what lies along z does not change it.
        along_B1 = (unit_BE * slope_BE).sum(dim=1, keepdim=True)
        gradients.append(
            slope_BE.addcmul_(unit_BE, along_B1, value=-1).div_(length_B1).mT @ rows_BK
        )
    return scores_BB, gradients


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


def covariance_root(covariance_KK: Tensor, rounding: float = 0.0) -> Tensor:
    """L with L Lᵀ = the covariance plus a little on the diagonal: moments may not have full rank."""
    mean_variance = max(float(covariance_KK.diagonal().mean()), 0.0)
    eye_KK = torch.eye(len(covariance_KK), dtype=covariance_KK.dtype)
    for share in _JITTERS:
        jitter = share * mean_variance + rounding
        # `info` is 0 if the factorisation succeeded; this variant does not raise.
        factor = torch.linalg.cholesky_ex(covariance_KK + jitter * eye_KK)
        if not int(factor.info):
            root_KK: Tensor = factor.L
            return root_KK
    raise ValueError("the moments of a pair are invalid: their covariance is not positive")
