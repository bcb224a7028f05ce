"""GEM: the small quadratic problem exactly, and gradients that oppose no memory."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.baselines.gem import GEM, smallest_quadratic, without_conflict
from tests.unit.methods.contexts import (
    AUDIO_DEPTH,
    AUDIO_IMAGE,
    IMAGE_TEXT,
    TEXT_IMAGE,
    context_on,
    gradients_left_by,
    gradients_of,
    loss_by_loops,
    pair_for,
    random_rows,
    taught,
    weights_now,
)

NEW = random_rows(IMAGE_TEXT, seed=1)


def objective(gram: Tensor, linear: Tensor, value: Tensor) -> float:
    return float(value @ gram @ value / 2 + linear @ value)


def by_brute_force(gram: Tensor, linear: Tensor, least: float) -> float:
    """The smallest feasible value over all sets of coordinates that may be off their bound."""
    found = []
    for chosen in product([False, True], repeat=len(linear)):
        free = torch.tensor(chosen)
        value = torch.full_like(linear, least)
        rest = -(linear + gram @ (value * ~free))[free]
        value[free] = torch.linalg.pinv(gram[free][:, free], hermitian=True) @ rest
        if bool((value >= least - 1e-12).all()):
            found.append(objective(gram, linear, value))
    return min(found)


@given(
    seed=st.integers(0, 10_000),
    memories=st.integers(1, 5),
    entries=st.integers(2, 6),
    least=st.sampled_from([0.0, 0.5]),
    repeated=st.booleans(),
)
def test_quadratic_problem_equals_brute_force(
    seed: int, memories: int, entries: int, least: float, repeated: bool
) -> None:
    """With more memories than entries, or a memory twice, the matrix is singular."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(memories, entries, generator=generator, dtype=torch.float64)
    rows = torch.cat([rows, rows[:1]]) if repeated else rows
    rows[0] *= 10.0 ** (seed % 5 - 2)
    gradient = torch.randn(entries, generator=generator, dtype=torch.float64)
    gram, linear = rows @ rows.mT, rows @ gradient
    found = smallest_quadratic(gram, linear, least)
    assert bool((found >= least).all())
    best = by_brute_force(gram, linear, least)
    size = 1 + float(gradient.square().sum()) + abs(best)
    assert objective(gram, linear, found) == pytest.approx(best, abs=1e-9 * size)


@given(seed=st.integers(0, 10_000), memories=st.integers(1, 4))
def test_without_a_margin_no_memory_is_opposed(seed: int, memories: int) -> None:
    """It is the closest such gradient: the correction is along opposed memories only."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(memories, 8, generator=generator, dtype=torch.float64)
    gradient = torch.randn(8, generator=generator, dtype=torch.float64)
    turned = without_conflict(gradient, rows, margin=0.0)
    assert bool((rows @ turned >= -1e-9).all())
    assert float((turned - gradient) @ turned) == pytest.approx(0.0, abs=1e-9)


def test_gradient_that_opposes_nothing_is_left_alone() -> None:
    gradient = torch.tensor([1.0, 2.0])
    assert without_conflict(gradient, torch.tensor([[1.0, 0.0], [0.0, 3.0]]), 0.5) is gradient


def test_memory_without_a_gradient_bounds_nothing() -> None:
    gradient = torch.tensor([1.0, 0.0], dtype=torch.float64)
    rows = torch.tensor([[-1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    turned = without_conflict(gradient, rows, margin=0.0)
    torch.testing.assert_close(turned, torch.zeros_like(gradient))


def test_update_turns_the_gradient_by_the_formula() -> None:
    """Of three memories one shares no head with the pair, and one is the pair the other way round."""
    seen = [
        (known, random_rows(known, 38 + n)) for n, known in enumerate((AUDIO_IMAGE, TEXT_IMAGE))
    ]
    foreign = (AUDIO_DEPTH, random_rows(AUDIO_DEPTH, 40))
    method = GEM(memory_rows=8, margin=0.5)
    context = context_on(IMAGE_TEXT, kept=taught(method, seen[0], foreign, seen[1]))
    pair = pair_for(method, context)
    now = weights_now(context, pair)
    gradient, *memories = (
        torch.cat(
            [part.reshape(-1) for part in gradients_of(loss_by_loops(now, one, rows, 0.2), pair)]
        )
        for one, rows in ((IMAGE_TEXT, NEW), *seen)
    )
    assert min(float(memory @ gradient) for memory in memories) < 0
    rows = torch.stack(memories)
    weight = smallest_quadratic(rows @ rows.mT, rows @ gradient, 0.5)
    expected = gradient + rows.mT @ weight
    found = torch.cat([one.reshape(-1) for one in gradients_left_by(method, context, pair, NEW)])
    torch.testing.assert_close(found, expected)
