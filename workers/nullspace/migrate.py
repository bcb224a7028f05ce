"""Stored vectors of one version turned into those of another, without encoders.

Shapes: B stored rows, E width of the embeddings, I width of what the head reads (the constant 1
included, so that a bias is a column and everything here is linear).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.nullspace.moments import SecondMoment

# A spread below this share of the features' energy is rounding of none.
_NO_SPREAD = 1e-9


@dataclass(frozen=True)
class Migration:
    """z_new ≈ A z_old with A = `map_EE` (float64; new width × old width).

    rank             directions of the old vectors that are used
    condition        the largest of their singular values over the smallest: the factor by which
                     rounding of stored vectors may grow
    predicted_error  relative root mean square error of unnormalised embeddings, expected for new rows
                     like those of the moment
    error_on_rows    the same over the rows of the moment themselves, exactly. It is the smaller the
                     fewer they are
    exact            the old head loses nothing, so the map is right for every row, seen or not
    """

    map_EE: Tensor
    rank: int
    condition: float
    predicted_error: float
    error_on_rows: float
    exact: bool

    def apply(self, stored_BE: Tensor) -> Tensor:
        """Migrate unnormalised embeddings W_old x: one product. Type as stored.

        Raises ValueError at another width and for rows that are not finite.
        """
        return self._mapped(stored_BE).to(stored_BE.dtype)

    def apply_unit(self, stored_BE: Tensor) -> Tensor:
        """Migrate unit embeddings W_old x / |W_old x| to unit embeddings. Type as stored.

        The map is linear, so a row's unknown length drops out of its direction, and the result is as
        right as that of `apply`. `predicted_error` weighs rows by their lengths, so for unit rows it
        is close and not exact. A row of which A keeps nothing becomes zeros. Raises ValueError as
        `apply`.
        """
        return torch.nn.functional.normalize(self._mapped(stored_BE), dim=1).to(stored_BE.dtype)

    def _mapped(self, stored_BE: Tensor) -> Tensor:
        width = self.map_EE.shape[1]
        if stored_BE.shape[-1] != width:
            raise ValueError(f"stored vectors of width {stored_BE.shape[-1]}, not {width}")
        if not stored_BE.isfinite().all():
            raise ValueError("stored vectors must be finite")
        return stored_BE.double() @ self.map_EE.to(stored_BE.device).mT


def migration(inputs: SecondMoment, old_EI: Tensor, new_EI: Tensor) -> Migration:
    """The map between two heads of a modality, equation (9), and its error from the input moment.

    If W_old has full column rank, features can be recovered, x = W_old⁺ z, and A = W_new W_old⁺ is
    exact. Otherwise A minimises the mean of |W_new x − A z|² = tr(Δ S Δᵀ) for Δ = W_new − A W_old. Its
    derivative with respect to A is zero for the normal equations A (W_old S W_oldᵀ) = W_new S W_oldᵀ.

    S is not the moment itself, which describes its own rows only: with fewer rows than E the map
    would lose what other rows have outside of their span, and claim an error of 0. It is the moment
    expected of rows like these, see `expected_moment`. So equal heads give the identity if W_old has
    full row rank. The error √( tr(Δ S Δᵀ) / tr(W_new S W_newᵀ) ) is that of A, cut-offs included.

    Raises ValueError if widths differ, without rows, for values that are not finite and if
    nothing of the old vectors can be used (rank 0).
    """
    _check(inputs, old_EI, new_EI)
    old_EI, new_EI = (weight_EI.to("cpu", torch.float64) for weight_EI in (old_EI, new_EI))
    # Full column rank: z determines x for any rows. Needs E ≥ I.
    inverse_IE, rank, condition = _pseudo_inverse(old_EI)
    exact, expected = rank == old_EI.shape[1], expected_moment(inputs)
    if not exact:
        # With S = R Rᵀ the solution (W_new S W_oldᵀ)(W_old S W_oldᵀ)⁺ is W_new R (W_old R)⁺: the same
        # map from a matrix whose condition is not squared.
        root_II = _root(expected)
        inverse_IE, rank, condition = _pseudo_inverse(old_EI @ root_II)
        inverse_IE = root_II @ inverse_IE
    if rank == 0:
        raise ValueError("rank 0: the old version maps all of these features to zero")
    # Recover the features as well as possible, then apply the new head.
    map_EE = new_EI @ inverse_IE
    return Migration(
        map_EE,
        rank,
        condition,
        predicted_error=_error(expected, map_EE, old_EI, new_EI),
        error_on_rows=_error(inputs, map_EE, old_EI, new_EI),
        exact=exact,
    )


def expected_moment(inputs: SecondMoment) -> SecondMoment:
    """The moment expected of rows like these: their own, shrunk towards isotropy.

    The covariance of the features (last column: the constant 1) becomes (1 − ρ) C + ρ tr(C)/p · I,
    with the ρ that comes nearest to the true covariance of Gaussian rows given C and their number. It
    needs no setting and has no effect if rows are many. Rows without spread say nothing about
    others: then all directions count alike. Source: Chen, Wiesel, Eldar and Hero, "Shrinkage
    algorithms for MMSE covariance estimation" (2010), equation 23.
    """
    mean_II = inputs.mean_II.to("cpu", torch.float64)
    # With x̃ = [x, 1]: E x xᵀ, E x and 1 (0 if there is no constant). E x xᵀ = C + μ μᵀ.
    features_FF, cross_F, constant = mean_II[:-1, :-1], mean_II[:-1, -1], mean_II[-1, -1]
    centre_FF = torch.outer(cross_F, cross_F) / constant if constant > 0 else 0 * features_FF
    covariance_FF, energy = features_FF - centre_FF, features_FF.trace()
    spread = covariance_FF.trace()
    share = _shrinkage(covariance_FF, inputs.count)
    # All rows equal: C is rounding. Give every direction the same variance instead.
    if spread <= _NO_SPREAD * energy:
        spread, share = (energy if energy > 0 else constant), 1.0
    # tr(C)/p · I has the same trace as C, spread evenly.
    even_FF = torch.eye(len(cross_F), dtype=torch.float64) * spread / max(len(cross_F), 1)
    # Only the block of E x xᵀ changes: the mean and the constant are known exactly.
    expected_II = mean_II.clone()
    expected_II[:-1, :-1] = (1 - share) * covariance_FF + share * even_FF + centre_FF
    return SecondMoment(1, expected_II)


def _shrinkage(covariance_FF: Tensor, rows: int) -> float:
    """ρ from 0 to 1: OAS, equation 23 of the source above, with p = `width` and n = `rows`."""
    width = len(covariance_FF)
    square, trace = float(covariance_FF.square().sum()), float(covariance_FF.trace())
    # For symmetric C, tr(C²) is the sum of squares. tr(C²) − tr(C)²/p is the squared distance of C from isotropy; 0 if it is isotropic already.
    uneven = square - trace**2 / max(width, 1)
    if uneven <= 0:
        return 1.0
    share = ((1 - 2 / width) * square + trace**2) / ((rows + 1 - 2 / width) * uneven)
    assert share >= 0
    return min(share, 1.0)


def _pseudo_inverse(matrix_EK: Tensor) -> tuple[Tensor, int, float]:
    """Pseudo-inverse, numerical rank and condition of what is kept.

    Heads are stored in float32. Their rounding alone moves singular values by up to max(E, K) units
    in the last place of the largest (the rule of numpy.linalg.matrix_rank). What lies below cannot be
    distinguished from zero, and its inverse would be noise: it is cut off.
    """
    left_EK, values_K, right_KK = torch.linalg.svd(matrix_EK, full_matrices=False)
    cut = max(matrix_EK.shape) * torch.finfo(torch.float32).eps * values_K[0]
    rank = int((values_K > cut).sum())
    if rank == 0:
        return matrix_EK.mT * 0, 0, float("inf")
    # M = L diag(σ) R, so M⁺ = Rᵀ diag(1/σ) Lᵀ over the singular values that are kept.
    inverse_KE = (right_KK[:rank].mT / values_K[:rank]) @ left_EK[:, :rank].mT
    return inverse_KE, rank, float(values_K[0] / values_K[rank - 1])


def _root(inputs: SecondMoment) -> Tensor:
    """R (I × I) with R Rᵀ = the mean moment."""
    mean_II = inputs.mean_II.to("cpu", torch.float64)
    values_I, vectors_II = torch.linalg.eigh((mean_II + mean_II.mT) / 2)
    # S = Y diag(λ) Yᵀ = (Y diag(√λ)) (Y diag(√λ))ᵀ. Any root will do; this one exists for rank < I too.
    root_II: Tensor = vectors_II * values_I.clamp_min(0).sqrt()
    return root_II


def _error(inputs: SecondMoment, map_EE: Tensor, old_EI: Tensor, new_EI: Tensor) -> float:
    """√( tr(Δ S Δᵀ) / tr(W_new S W_newᵀ) ) with Δ = W_new − A W_old."""
    change = _energy(inputs, new_EI - map_EE @ old_EI)
    size = _energy(inputs, new_EI)
    if size <= 0:
        return 0.0 if change <= 0 else float("inf")
    return float((max(change, 0.0) / size) ** 0.5)


def _energy(inputs: SecondMoment, weight_EI: Tensor) -> float:
    """Mean square length of W x over the rows of the moment: tr(W S Wᵀ)."""
    mean_II = inputs.mean_II.to(weight_EI)
    # tr(W S Wᵀ) = Σ (W S) ∘ W: one product instead of two.
    return float(((weight_EI @ mean_II) * weight_EI).sum())


def _check(inputs: SecondMoment, old_EI: Tensor, new_EI: Tensor) -> None:
    widths = [len(inputs.sum_II), old_EI.shape[1], new_EI.shape[1]]
    if len(set(widths)) != 1:
        raise ValueError(f"moment, old and new head read different widths: {widths}")
    if inputs.count < 1:
        raise ValueError("the moment to migrate by is of 0 rows")
    if not all(torch.isfinite(values).all() for values in (inputs.sum_II, old_EI, new_EI)):
        raise ValueError("moment, old and new head must be finite")
