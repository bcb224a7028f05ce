"""Certificates for old datasets, from moments alone: how far scores moved, how good they are.

Shapes: E width of the embeddings, I and J widths of the two sides' features.

With G = W_uᵀ W_v, mean moments C_u, C_v and mean cross moment X, over all row combinations

    mean of (x_uᵀ G x_v)² = tr(C_u G C_v Gᵀ)         mean square of the scores
    mean of x_uᵀ G x_v over true pairs = tr(Gᵀ X)    mean score of the pairs

because Σ (x_uᵀ G x_v)² = Σ x_uᵀ G (x_v x_vᵀ) Gᵀ x_u, and the two rows of a combination are summed
independently. *Drift* (6) compares the first of ΔG = G − G₀ with that of G₀. *Quality* (7) is the
spectral contrastive loss, for which second moments are sufficient if heads are linear (HaoChen et
al., arXiv 2106.04156). Scaled by what both terms were when the dataset was learned, a and b,

    L(G) = tr(C_u G C_v Gᵀ) / a − 2 tr(Gᵀ X) / b

Along its own ray, t G₀, it is t² − 2 t: lowest, at −1, for the heads that learned the dataset.

*Optimality* compares L with the lowest that any two heads of width E reach on this dataset alone, which
is exact from moments as well: it separates what was forgotten from what a head of this width cannot
hold. With H = C_u^½ G C_v^½ of rank E at most and K = C_u^-½ X C_v^-½, L = |H|²/a − 2⟨H, K⟩/b. The best
rank-E approximation of K (Eckart and Young 1936) is best here, times a/b:

    min L = −(a / b²) Σ_{k ≤ E} σ_k(K)²                                                       (14)

G (I × J) is never formed. With M = W C Wᵀ (E × E), tr(C_u G C_v Gᵀ) = tr(M_u M_v).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from workers.nullspace.moments import PairMoments, SecondMoment

# Of moments with float32 products, an eigenvalue below this share of the largest is rounding of zero.
_NO_ENERGY = 1e-7
# Heads whose products with moments are kept: those that learned the dataset, the parent's and a version's.
KEPT_HEADS = 3
# Of so many times as many features as are needed, most have a rank that is enough.
_PART = 1.25
# A mean score of true pairs below this share of the scores' size is rounding of zero.
_ZERO = 1e-12


@dataclass(frozen=True)
class PairWeights:
    """The heads of the two sides of a pair at one moment in time."""

    first_EI: Tensor
    second_EJ: Tensor


class PairScores:
    """The scores of all row combinations of a dataset under any heads, from its moments.

    W C (E × I, float64), the only expensive product, is formed once for each of the heads that were compared last.
    """

    def __init__(self, moments: PairMoments) -> None:
        self._first, self._second = _Side(moments.first), _Side(moments.second)
        self._moments = moments
        self._measured: list[tuple[PairWeights, tuple[float, float]]] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the moments."""
        moments = self._moments
        sums = moments.first.sum_II, moments.second.sum_II, moments.cross_IJ
        return sum(each.nbytes for each in sums)

    def drift(self, then: PairWeights, now: PairWeights) -> float:
        """Root mean square change of the scores of all row combinations, relative to their size then.

        √( tr(C_u ΔG C_v ΔGᵀ) / tr(C_u G₀ C_v G₀ᵀ) ), equation (6).
        Exactly zero when nothing moved. Heads that moved without moving a score read as up to about
        1e-8, the root of what float64 rounds. Zero if all scores were zero.
        """
        first = self._first.moved(then.first_EI, now.first_EI)
        second = self._second.moved(then.second_EJ, now.second_EJ)
        # The denominator: tr(C_u W_uᵀ W_v C_v W_vᵀ W_u) = tr(W_u C_u W_uᵀ · W_v C_v W_vᵀ), since a trace may
        # be rotated. Both factors are E × E for features of any width.
        size = float((first.then_EE * second.then_EE).sum())
        # Scores that were all zero had no order to lose.
        if size <= 0:
            return 0.0
        # ΔG = Δ_uᵀ W_v,now + W_u,thenᵀ Δ_v. Kept as two terms P + Q it is free of the cancellation of
        # subtracting two large products, and |P + Q|² = |P|² + 2 ⟨P, Q⟩ + |Q|² needs E × E traces only:
        #   |P|²   = tr(Δ_u C_u Δ_uᵀ · W_v,now C_v W_v,nowᵀ)
        #   ⟨P, Q⟩ = tr(Δ_u C_u W_uᵀ · Δ_v C_v W_v,nowᵀ)
        #   |Q|²   = tr(W_u C_u W_uᵀ · Δ_v C_v Δ_vᵀ)
        # where tr(A B) = Σ A ∘ Bᵀ, and symmetric factors need no transpose.
        change = float(
            (first.moved_EE * second.now_EE).sum()
            + 2 * (first.mixed_EE * second.now_mixed_EE.mT).sum()
            + (first.then_EE * second.moved_EE).sum()
        )
        # Rounding may leave a tiny negative sum where nothing moved; the root needs 0.
        return float((max(change, 0.0) / size) ** 0.5)

    def correlations(self, then: PairWeights, now: PairWeights) -> tuple[float, float]:
        """How the scores of a query with all rows of the other side correlate between two versions, from −1 to 1.

        Queries of the first side, and of the second. Over the rows, about each query's mean score: with the covariance
        C_v − m mᵀ of the rows in place of C_v, tr(C_u G₀ (C_v − m mᵀ) Gᵀ) is the covariance of the scores, in the mean
        over the queries. 1 for equal heads, and where scores are all equal in both.
        """
        first = self._first.moved(then.first_EI, now.first_EI)
        second = self._second.moved(then.second_EJ, now.second_EJ)
        return (
            _correlation(first.products(), second.centred_products()),
            _correlation(second.products(), first.centred_products()),
        )

    def norm_changes(self, then: PairWeights, now: PairWeights) -> tuple[float, float]:
        """Relative change of the root mean square norm of each side's embeddings on a dataset.

        √( tr(W C Wᵀ) now / then ) − 1: 0 if norms stay, or if embeddings were all zero then, and −1 if all have
        become zero.
        """
        return (
            self._first.norm_change(then.first_EI, now.first_EI),
            self._second.norm_change(then.second_EJ, now.second_EJ),
        )

    def quality(self, then: PairWeights, now: PairWeights) -> float:
        """L of a whole dataset under today's heads, equation (7), in float64.

        −1 under the heads that learned it; below −1, better than then; 0, the loss of heads that score
        everything 0; above 0, worse than nothing. It is 0 for any heads if the dataset was learned so
        badly that there is nothing to measure against: all scores zero then (a ≤ 0), or true pairs
        scored no higher than zero on average (b ≤ 0), where dividing by b would reward pushing them
        apart.
        """
        a, b = self.size_and_agreement(then)
        # a is a mean of squared scores and b a mean of scores: √a is the scale to compare b with.
        if a <= 0 or b <= _ZERO * a**0.5:
            return 0.0
        # (7) under today's heads, with a and b from the version that learned the dataset.
        size, agreement = self.size_and_agreement(now)
        return size / a - 2 * agreement / b

    def lowest_loss(self, then: PairWeights, attainable: float) -> float:
        """The lowest `quality` that any two heads of a width reach, (14): −1 or below.

        `attainable`: that of the moments and the width. 0, as `quality`, if there is nothing to
        measure against.
        """
        a, b = self.size_and_agreement(then)
        if a <= 0 or b <= _ZERO * a**0.5:
            return 0.0
        return -a / b**2 * attainable

    def size_and_agreement(self, heads: PairWeights) -> tuple[float, float]:
        """(tr(C_u G C_v Gᵀ), tr(Gᵀ X)): mean square of all scores, and mean score of true pairs."""
        for known, measured in self._measured:
            if known is heads:
                return measured
        first_EI, second_EJ = heads.first_EI.double(), heads.second_EJ.double()
        # M = W C Wᵀ of both sides (E × E), and tr(M_u M_v) = Σ M_u ∘ M_v: they are symmetric.
        first_EE = self._first.image(heads.first_EI).square_EE
        second_EE = self._second.image(heads.second_EJ).square_EE
        # tr(Gᵀ X) = tr(W_u X W_vᵀ) = Σ (W_u X) ∘ W_v.
        agreement = ((first_EI @ self._moments.cross_IJ) * second_EJ).sum()
        found = float((first_EE * second_EE).sum()), float(agreement) / max(self._moments.count, 1)
        self._measured = [*self._measured[1 - KEPT_HEADS :], (heads, found)]
        assert len(self._measured) <= KEPT_HEADS
        return found


@dataclass(frozen=True)
class _Image:
    """A head W and its product W C with a mean moment, both float64 (E × I)."""

    weight_EI: Tensor
    image_EI: Tensor

    @cached_property
    def square_EE(self) -> Tensor:
        """W C Wᵀ."""
        return self.image_EI @ self.weight_EI.mT

    @property
    def mean_E(self) -> Tensor:
        """The mean of W x: the constant 1 is the last column of x."""
        return self.image_EI[:, -1]


class _Side:
    """A side's mean moment C and its products with heads."""

    def __init__(self, moment: SecondMoment) -> None:
        self._moment = moment
        # The one that was asked for last at the end.
        self._images: list[tuple[Tensor, _Image]] = []
        self._moved: _Moved | None = None

    def image(self, weight_EI: Tensor) -> _Image:
        """Heads that are equal have the same one, to the bit."""
        for number, (known_EI, found) in enumerate(self._images):
            if known_EI is weight_EI or torch.equal(known_EI, weight_EI):
                self._images.append(self._images.pop(number))
                return found
        sum_II = self._moment.sum_II
        exact_EI = weight_EI.to(sum_II)
        found = _Image(exact_EI, exact_EI @ sum_II / max(self._moment.count, 1))
        self._images = [*self._images[1 - KEPT_HEADS :], (weight_EI, found)]
        assert len(self._images) <= KEPT_HEADS, "more products are kept than are counted as memory"
        return found

    def moved(self, then_EI: Tensor, now_EI: Tensor) -> "_Moved":
        """Of the two heads that were asked for last, as before."""
        then, now = self.image(then_EI), self.image(now_EI)
        known = self._moved
        if known is None or known.then is not then or known.now is not now:
            self._moved = known = _Moved.between(then, now)
        return known

    def norm_change(self, then_EI: Tensor, now_EI: Tensor) -> float:
        before, after = self._square_norm(then_EI), self._square_norm(now_EI)
        return float((max(after, 0.0) / before) ** 0.5) - 1.0 if before > 0 else 0.0

    def _square_norm(self, weight_EI: Tensor) -> float:
        """Mean of |W x|² over the rows: tr(W C Wᵀ)."""
        return float(self.image(weight_EI).square_EE.trace())


_Products = tuple[Tensor, Tensor, Tensor]


def _correlation(queries: _Products, rows: _Products) -> float:
    # tr(C_u G₀ C_v Gᵀ) = tr(W_u C_u W_u,0ᵀ · W_v,0 C_v W_vᵀ) = Σ (W_u,0 C_u W_uᵀ) ∘ (W_v,0 C_v W_vᵀ).
    then, both, now = (float((one * other).sum()) for one, other in zip(queries, rows, strict=True))
    if then <= 0 or now <= 0:
        return 1.0 if then <= 0 and now <= 0 else 0.0
    return max(min(both / math.sqrt(then * now), 1.0), -1.0)


@dataclass(frozen=True)
class _Moved:
    """A side's mean moment between its head then (W) and its change (Δ), E × E, float64."""

    then: _Image
    now: _Image
    mixed_EE: Tensor  # Δ C Wᵀ
    moved_EE: Tensor  # Δ C Δᵀ

    @classmethod
    def between(cls, then: _Image, now: _Image) -> "_Moved":
        change_EI = now.weight_EI - then.weight_EI
        change_image_EI = now.image_EI - then.image_EI
        return cls(then, now, change_image_EI @ then.weight_EI.mT, change_image_EI @ change_EI.mT)

    @property
    def then_EE(self) -> Tensor:
        """W C Wᵀ."""
        return self.then.square_EE

    @property
    def now_mixed_EE(self) -> Tensor:
        """Δ C (W + Δ)ᵀ."""
        return self.mixed_EE + self.moved_EE

    @property
    def now_EE(self) -> Tensor:
        """(W + Δ) C (W + Δ)ᵀ."""
        return self.then_EE + self.mixed_EE + self.mixed_EE.mT + self.moved_EE

    def products(self) -> _Products:
        """W C Wᵀ, W C (W + Δ)ᵀ and (W + Δ) C (W + Δ)ᵀ."""
        return self.then_EE, self.then_EE + self.mixed_EE.mT, self.now.square_EE

    def centred_products(self) -> _Products:
        """The same of the covariance of the rows in place of C."""
        then_E, now_E = self.then.mean_E, self.now.mean_E
        then_EE, both_EE, now_EE = self.products()
        return (
            then_EE - then_E.outer(then_E),
            both_EE - then_E.outer(now_E),
            now_EE - now_E.outer(now_E),
        )


# --- Optimality ---------------------------------------------------------------------------------


def attainable(moments: PairMoments, width: int) -> float:
    """Σ σ_k² of (14) for heads of `width`: a number of the dataset alone, from 0 to `width`.

    It is about the rows that the moments are of. With fewer rows than features any pairing can be
    learned by heart, and every σ_k is 1.
    """
    mean = moments.mean
    sides = [_on_host(side.sum_II) for side in (mean.first, mean.second)]
    # N rows span N dimensions at most, so features of ranks r and q have r + q − N dimensions in common at least, and
    # as many correlations are 1. Mostly that is all of them, already for some of the features, and ranks of these take
    # little time: of a principal submatrix at most as many eigenvalues are above a threshold as of the whole (Cauchy's interlacing).
    enough = moments.count + width
    share = _PART * enough / sum(map(len, sides))
    if share < 1 and sum(_rank_of_part(side_II, share) for side_II in sides) >= enough:
        return float(width)
    ranks = [int(_has_energy(torch.linalg.eigvalsh(side_II)).sum()) for side_II in sides]
    most = min(width, *ranks)
    if sum(ranks) - moments.count >= most:
        return float(most)
    first_IK, second_JL = (_inverse_root(side_II) for side_II in sides)
    values_K = torch.linalg.svdvals(first_IK.mT @ mean.cross_IJ.to(first_IK) @ second_JL)
    # Rounding aside none exceeds 1: a correlation.
    return float(values_K[:width].clamp_max(1).square().sum())


def _on_host(mean_II: Tensor) -> Tensor:
    return (mean_II + mean_II.mT).to("cpu", torch.float64) / 2


def _rank_of_part(mean_II: Tensor, share: float) -> int:
    """The rank of this share of the features, by a threshold that is not below that of all of them."""
    size = len(mean_II)
    part_P = torch.linspace(0, size - 1, math.ceil(share * size)).long()
    values_P = torch.linalg.eigvalsh(mean_II[part_P][:, part_P])
    return int((values_P > _NO_ENERGY * mean_II.trace()).sum())


def _has_energy(values_I: Tensor) -> Tensor:
    """Mask of the eigenvalues (rising) above rounding."""
    return values_I > _NO_ENERGY * values_I[-1]


def _inverse_root(mean_II: Tensor) -> Tensor:
    """Columns (I × K) V s^-½: C^-½ on the span of C, in the coordinates of its eigenvectors."""
    values_I, vectors_II = torch.linalg.eigh(mean_II)
    kept_I = _has_energy(values_I)
    root_IK: Tensor = vectors_II[:, kept_I] / values_I[kept_I].sqrt()
    return root_IK


def stored_change(moments: PairMoments, old: PairWeights, new: PairWeights) -> float:
    """The larger relative change of the two sides' scores, over all row combinations of a dataset, from its moments.

    A vector of the first side stored by the old version and a query of the second side by the new one have the score
    x_uᵀ W_u,oldᵀ W_v,new x_v: that of a version with one old and one new head, so its change is the drift (6) of that
    version. Exactly zero if nothing moved.
    """
    # Named by the side whose vectors are stored, and so whose head is old.
    first_stored = PairWeights(old.first_EI, new.second_EJ)
    second_stored = PairWeights(new.first_EI, old.second_EJ)
    return max(PairScores(moments).drift(old, mixed) for mixed in (first_stored, second_stored))
