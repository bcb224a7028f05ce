"""The leading eigenvectors of a large symmetric matrix that is known by its products alone.

Shapes: D size of the matrix, N columns of the block, K wanted eigenvectors.

Subspace iteration multiplies a block of columns by the matrix again and again, so that what lies
along leading eigenvectors grows fastest. Multiplying by a polynomial p of the matrix instead grows
an eigenvector of value s by p(s). The Chebyshev polynomial of degree m is the one that grows most
above an interval in which it stays within ±1: by cosh(m √(2 g)) at a small relative distance g,
where a power of the same degree grows by e^(m g) (Zhou, Saad, Tiago and Chelikowsky 2006, "Parallel
self-consistent-field calculations via Chebyshev-filtered subspace acceleration"). Spectra here are
flat, and g is small.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.nullspace.subspace import is_orthonormal
from workers.nullspace.threads import in_threads, one_thread

Product = Callable[[Tensor], Tensor]
"""From columns (D × N) to the matrix times these columns."""

# Columns beyond the wanted ones. The last ones of a block converge last, so they are not among the
# wanted ones.
_SPARE = 64
# Of the first filter, before there are Ritz values, and of each round. One round then reaches 1.5e-2 to 2.3e-2 on the real
# streams, in 13 products (docs/log.md).
_FIRST_DEGREE, _DEGREE = 5, 6
_FEWEST_COLUMNS = 32
# A block of this share of the matrix is no saving: decompose the matrix itself.
_DENSE = 0.4


@dataclass(frozen=True)
class Leading:
    """Eigenvalues (K, falling) and orthonormal eigenvectors (D × K).

    `residual`: the largest |A v − s v| of a wanted eigenvector, so that each value is within
    `residual` of a true one.
    """

    values_K: Tensor
    vectors_DK: Tensor
    residual: float


def leading_eigenvectors(
    product: Product, start_DN: Tensor, wanted: int, tolerance: float, most_rounds: int = 12
) -> Leading:
    """The eigenvectors of the `wanted` largest eigenvalues of a matrix with a spectrum in [−1, 1].

    `start_DN`: any columns, in the precision to compute in; more of them than wanted converge
    faster. A function of its arguments alone: nothing is drawn. It ends when the residual is at most
    `tolerance`, or after `most_rounds` rounds of seven products. Raises ValueError for fewer columns
    than wanted.
    """
    size, columns = start_DN.shape
    if columns < wanted:
        raise ValueError(f"{columns} columns to start from, {wanted} eigenvectors are wanted")
    if columns >= _DENSE * size:
        return _dense(product, start_DN, wanted)
    # Positive eigenvalues are wanted, so what is not positive can be damped before any is known.
    filtered_DN = _filtered(product, _orthonormal(start_DN), (0.0, 1.0), _FIRST_DEGREE)
    found, values_N, block_DN = _ritz(product, _orthonormal(filtered_DN), wanted)
    for _ in range(most_rounds):
        if found.residual <= tolerance:
            break
        # The least Ritz value of the block is at most the eigenvalue of the same number: a filter
        # that damps [−1, it] damps nothing that is wanted.
        ends = float(values_N[-1]), float(values_N[0])
        filtered_DN = _filtered(product, block_DN, ends, _DEGREE)
        found, values_N, block_DN = _ritz(product, _orthonormal(filtered_DN), wanted)
    assert len(found.values_K) == found.vectors_DK.shape[1] == wanted
    assert bool((found.values_K.diff() <= 0).all()), "eigenvalues fall"
    assert is_orthonormal(found.vectors_DK, 5e-2)
    return found


def leading_basis(matrix_FF: Tensor, columns: int) -> Tensor:
    """Orthonormal columns (F × R) that hold the leading eigenvectors of a positive matrix, nearly.

    Two products of random columns (Halko, Martinsson and Tropp 2011, "Finding structure with randomness").
    All directions if there are at most `columns` of them.
    """
    if columns >= len(matrix_FF):
        return torch.eye(len(matrix_FF)).to(matrix_FF)
    basis_FR = random_start(len(matrix_FF), columns - _SPARE, matrix_FF)
    for _ in range(2):
        basis_FR = _orthonormal(matrix_FF @ basis_FR)
    assert is_orthonormal(basis_FR, 1e-3)
    return basis_FR


def random_start(size: int, wanted: int, like: Tensor) -> Tensor:
    """Columns to start from (D × N): the same ones for the same size."""
    generator = torch.Generator().manual_seed(0)
    columns = min(wanted + _SPARE, size)
    return torch.randn(size, columns, generator=generator, dtype=torch.float64).to(like)


def with_canonical_signs(vectors_DK: Tensor) -> Tensor:
    """Eigenvectors are determined up to their sign: make the largest entry of each positive."""
    largest_1K = vectors_DK.abs().argmax(dim=0, keepdim=True)
    sign_1K = torch.where(vectors_DK.gather(0, largest_1K) < 0, -1.0, 1.0)
    return vectors_DK * sign_1K


def _filtered(product: Product, block_DN: Tensor, ends: tuple[float, float], degree: int) -> Tensor:
    """p(A) times the block, p the Chebyshev polynomial that stays small on [−1, cut]. `ends`: cut and largest value.

    With t(A) = (A − centre) / half mapping [−1, cut] to [−1, 1] it is the recurrence
    T_k+1 = 2 t T_k − T_k−1, divided by its size at `largest` so that no number grows.
    """
    threads = torch.get_num_threads()
    # Two parts for each thread: one that is held up makes fewer. Of narrower ones a product waits for memory.
    columns = max(_FEWEST_COLUMNS, -(-block_DN.shape[1] // (2 * threads)))
    parts = in_threads(
        lambda part_DN: _filtered_part(product, part_DN.contiguous(), ends, degree),
        torch.split(block_DN, columns if threads > 1 else block_DN.shape[1], dim=1),
    )
    return torch.cat(parts, dim=1)


def _filtered_part(
    product: Product, block_DN: Tensor, ends: tuple[float, float], degree: int
) -> Tensor:
    cut, largest = ends
    half, centre = (cut + 1) / 2, (cut - 1) / 2
    # Without a gap between `largest` and `cut` there is nothing to separate.
    scale = half / max(largest - centre, half * (1 + 1e-3))
    first, before_DN = scale, block_DN
    now_DN = (product(block_DN) - centre * block_DN) * (scale / half)
    for _ in range(1, degree):
        following = 1 / (2 / first - scale)
        next_DN = product(now_DN).sub_(now_DN, alpha=centre).mul_(2 * following / half)
        next_DN.sub_(before_DN, alpha=scale * following)
        before_DN, now_DN, scale = now_DN, next_DN, following
    return now_DN


def _ritz(product: Product, block_DN: Tensor, wanted: int) -> tuple[Leading, Tensor, Tensor]:
    """The best eigenvectors within the span of orthonormal columns (Rayleigh–Ritz).

    Qᵀ A Q (N × N) has eigenvectors Y; those of A, as far as the span holds them, are Q Y.
    Decomposed in float64. Returns the wanted ones, all Ritz values, and all vectors.
    """
    image_DN = product(block_DN)
    within_NN = (block_DN.mT @ image_DN).double()
    with one_thread():
        values_N, rotation_NN = torch.linalg.eigh((within_NN + within_NN.mT) / 2)
    values_N, rotation_NN = values_N.flip(0), rotation_NN.flip(1).to(block_DN)
    block_DN, image_DN = block_DN @ rotation_NN, image_DN @ rotation_NN
    values_K = values_N[:wanted]
    rest_DK = image_DN[:, :wanted] - block_DN[:, :wanted] * values_K.to(block_DN)
    residual = float(rest_DK.norm(dim=0).max()) if wanted else 0.0
    return Leading(values_K, block_DN[:, :wanted], residual), values_N, block_DN


def _dense(product: Product, like: Tensor, wanted: int) -> Leading:
    """All eigenvectors of a small matrix, in float64."""
    eye_DD = torch.eye(len(like), dtype=like.dtype)
    matrix_DD = product(eye_DD).double()
    values_D, vectors_DD = torch.linalg.eigh((matrix_DD + matrix_DD.mT) / 2)
    values_K, vectors_DK = values_D.flip(0)[:wanted], vectors_DD.flip(1)[:, :wanted]
    assert len(values_K) == wanted, "more are wanted than there are"
    return Leading(values_K, vectors_DK.to(like), 0.0)


def _orthonormal(block_DN: Tensor) -> Tensor:
    """Orthonormal columns with the same span, by parts of the rows (Demmel, Grigori, Hoemmen and Langou 2012, "TSQR").

    Two threads of one QR wait for each other at each column.
    """
    rows, columns = block_DN.shape
    parts = torch.split(block_DN, max(-(-rows // torch.get_num_threads()), columns))
    if len(parts) == 1:
        basis_DN: Tensor = torch.linalg.qr(block_DN).Q
        return basis_DN
    # The last part may have fewer rows than columns, and a smaller triangle.
    factors = in_threads(torch.linalg.qr, parts)
    with one_thread():
        whole_XN = torch.linalg.qr(torch.cat([each.R for each in factors])).Q
    places = torch.split(whole_XN, [len(each.R) for each in factors])
    pairs = zip(factors, places, strict=True)
    return torch.cat(in_threads(lambda pair: pair[0].Q @ pair[1], [*pairs]))
