"""CCA, CSA and CCA-CL against the textbook's formula, in NumPy, on rows."""

import numpy as np
import torch
from torch import Tensor

from benchmarks.baselines.cca import CCA, CSA
from benchmarks.baselines.cca_cl import CCACL
from cmcl.contract.modality import ModalityPair
from tests.unit.methods.contexts import HEAD_WIDTHS, IMAGE_TEXT, WIDTH, context_on
from workers.methods.method import Solved
from workers.model.memory import Memory
from workers.nullspace.centred import dataset_moments
from workers.nullspace.moments import pair_moments

ROWS = 300
RIDGE = 1e-6  # The smallest: the textbook has none.


def sides(pair: ModalityPair, seed: int) -> list[Tensor]:
    """Noisy views of four latent numbers, with the constant 1."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(ROWS, 4, generator=generator, dtype=torch.float64)
    found = []
    for name in pair.modalities:
        width = HEAD_WIDTHS[name] - 1
        mixing = torch.randn(4, width, generator=generator, dtype=torch.float64)
        noise = torch.randn(ROWS, width, generator=generator, dtype=torch.float64)
        ones = torch.ones(ROWS, 1, dtype=torch.float64)
        found.append(torch.cat([shared @ mixing + noise + 2, ones], dim=1))
    return found


def memory_of(*pairs: tuple[ModalityPair, int]) -> Memory:
    memory = Memory()
    for pair, seed in pairs:
        ridges = dict.fromkeys(pair.modalities, RIDGE)
        memory = memory.with_sums(pair, dataset_moments(pair_moments(*sides(pair, seed))), ridges)
    return memory


def solved(method: CCA, memory: Memory) -> Solved:
    return method.solve(context_on(IMAGE_TEXT), memory)


def correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Singular values of C_u^-½ X C_v^-½."""
    first, second = first - first.mean(0), second - second.mean(0)
    roots = []
    for side in (first, second):
        values, vectors = np.linalg.eigh(side.T @ side)
        roots.append(vectors / np.sqrt(values) @ vectors.T)
    return np.linalg.svd(roots[0] @ first.T @ second @ roots[1])[1]


def test_embeddings_of_one_pair_are_its_canonical_variates() -> None:
    """Uncorrelated within a side, and direction k of both sides correlates by ρ_k alone."""
    image, text = sides(IMAGE_TEXT, seed=1)
    weights = solved(CCA(0.07, RIDGE), memory_of((IMAGE_TEXT, 1))).weights
    both = np.hstack(
        [
            (side @ weights[name].double().mT).numpy()
            for name, side in (("image", image), ("text", text))
        ]
    )
    found = np.corrcoef(both.T)
    rho = np.diag(correlations(image[:, :-1].numpy(), text[:, :-1].numpy())[:WIDTH])
    expected = np.block([[np.eye(WIDTH), rho], [rho, np.eye(WIDTH)]])
    np.testing.assert_allclose(found, expected, atol=2e-2)
    np.testing.assert_allclose(both.mean(0), 0, atol=1e-5)


def test_similarity_weighs_each_direction_by_its_correlation() -> None:
    image, text = sides(IMAGE_TEXT, seed=1)
    memory = memory_of((IMAGE_TEXT, 1))
    plain, weighted = (solved(kind(0.07, RIDGE), memory).weights for kind in (CCA, CSA))
    rho = torch.from_numpy(correlations(image[:, :-1].numpy(), text[:, :-1].numpy())[:WIDTH])
    a, b = (rows @ plain[name].double().mT for name, rows in (("image", image), ("text", text)))
    u, v = (rows @ weighted[name].double().mT for name, rows in (("image", image), ("text", text)))
    torch.testing.assert_close(u @ v.mT, (a * rho) @ b.mT, rtol=1e-2, atol=1e-4)


def test_cca_cl_weighs_both_sides_by_the_correlation_and_leaves_out_the_last_directions() -> None:
    image, text = sides(IMAGE_TEXT, seed=1)
    memory = memory_of((IMAGE_TEXT, 1))
    plain, weighted = (
        solved(method, memory).weights
        for method in (CCA(0.07, RIDGE), CCACL(0.07, RIDGE, energy=0.8))
    )
    rho = correlations(image[:, :-1].numpy(), text[:, :-1].numpy())[:WIDTH]
    kept = 1 + int(((rho**2).cumsum() < 0.8 * (rho**2).sum()).sum())
    assert 1 < kept < WIDTH
    a, b = (rows @ plain[name].double().mT for name, rows in (("image", image), ("text", text)))
    u, v = (rows @ weighted[name].double().mT for name, rows in (("image", image), ("text", text)))
    weights = torch.from_numpy(np.where(np.arange(WIDTH) < kept, rho**2, 0))
    torch.testing.assert_close(u @ v.mT, (a * weights) @ b.mT, rtol=1e-2, atol=1e-4)
