"""Leading eigenvectors by products alone equal those of a full decomposition."""

import pytest
import torch
from torch import Tensor

from workers.nullspace.eigenvectors import (
    leading_basis,
    leading_eigenvectors,
    random_start,
)

SIZE, WANTED = 600, 40


def matrix_with(values_D: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    random_DD = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    basis_DD = torch.linalg.qr(random_DD).Q
    return (basis_DD * values_D) @ basis_DD.mT, basis_DD


SPECTRA = {
    "falling": torch.linspace(1, -1, SIZE, dtype=torch.float64),
    "flat": 0.6 - 0.3 * torch.linspace(0, 1, SIZE, dtype=torch.float64),
    "steep": 0.9 ** torch.arange(SIZE, dtype=torch.float64),
    "symmetric": torch.cat([torch.linspace(0.9, 0, 300), torch.linspace(0, -0.9, 300)]).double(),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_they_span_what_a_full_decomposition_finds(name: str) -> None:
    matrix_DD, basis_DD = matrix_with(SPECTRA[name])
    start_DN = random_start(SIZE, WANTED, matrix_DD)
    found = leading_eigenvectors(lambda x: matrix_DD @ x, start_DN, WANTED, 1e-8, most_rounds=60)
    torch.testing.assert_close(found.values_K, SPECTRA[name][:WANTED], atol=1e-6, rtol=0)
    # Cosines of the angles between the two spans.
    cosines = torch.linalg.svdvals(basis_DD[:, :WANTED].mT @ found.vectors_DK)
    assert float(cosines.min()) > 1 - 1e-4


def test_a_warm_start_needs_no_round() -> None:
    matrix_DD, basis_DD = matrix_with(SPECTRA["falling"])
    # Of columns: threads share those of a product.
    products = []

    def product(block_DN: Tensor) -> Tensor:
        products.append(block_DN.shape[1])
        return matrix_DD @ block_DN

    found = leading_eigenvectors(product, basis_DD[:, : WANTED + 8], WANTED, 1e-8)
    assert found.residual < 1e-8
    assert sum(products) == 6 * (WANTED + 8)


def test_float32_reaches_its_precision() -> None:
    matrix_DD, _ = matrix_with(SPECTRA["falling"])
    single_DD = matrix_DD.float()
    start_DN = random_start(SIZE, WANTED, single_DD)
    found = leading_eigenvectors(lambda x: single_DD @ x, start_DN, WANTED, 1e-4)
    assert found.residual <= 1e-4
    torch.testing.assert_close(found.values_K, SPECTRA["falling"][:WANTED], atol=1e-5, rtol=0)


def test_fewer_columns_than_wanted_are_refused() -> None:
    with pytest.raises(ValueError, match="3 columns to start from, 4 eigenvectors"):
        leading_eigenvectors(lambda x: x, torch.zeros(9, 3), 4, 1e-3)


def test_a_basis_holds_the_leading_eigenvectors() -> None:
    values_D = torch.logspace(0, -6, SIZE, dtype=torch.float64)
    matrix_DD, _ = matrix_with(values_D)
    basis_DR = leading_basis(matrix_DD, 200)
    assert basis_DR.shape == (SIZE, 200)
    within_R = torch.linalg.eigvalsh(basis_DR.mT @ matrix_DD @ basis_DR).flip(0)
    torch.testing.assert_close(within_R[:100], values_D[:100], atol=0, rtol=1e-3)


def test_a_basis_as_wide_as_the_matrix_is_all_directions() -> None:
    matrix_DD, _ = matrix_with(SPECTRA["falling"])
    assert torch.equal(leading_basis(matrix_DD, SIZE), torch.eye(SIZE, dtype=torch.float64))
