"""Acc, recall and backward transfer as published: dot products, one text per class, draws of test rows.

Shapes: N test rows, D rows of a draw, C classes, E width of the embeddings, F of the features.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Self

import torch
from torch import Tensor

from benchmarks.figures import mean_of
from benchmarks.paper.features import EvaluationRows, StepData
from benchmarks.paper.protocol import DRAWS, ROWS_OF_A_DRAW

Embed = Callable[[str, Tensor], Tensor]
"""Modality and raw features (N × F) to the vectors (N × E) whose dot products are scores."""

_BEST = 10


@dataclass(frozen=True)
class StepFigures:
    """Figures of one step, as shares; None for a test that the step does not have."""

    accuracy: float | None = None
    recall_at_1: float | None = None
    recall_at_5: float | None = None
    recall_at_10: float | None = None

    @classmethod
    def of(cls, stored: dict[str, float | None]) -> Self:
        """From `asdict`."""
        return cls(**stored)


FIGURES = ("accuracy", "recall_at_1", "recall_at_5", "recall_at_10")
Matrix = Sequence[Sequence[StepFigures]]
"""[t][s]: step s after step t was learned."""


def measure_all(embed: Embed, steps: Sequence[StepData], seed: int) -> list[StepFigures]:
    """Measure every step. Draws follow from the seed and the step: all methods and versions have the same."""
    return [measure_step(embed, data, seed * 1000 + place) for place, data in enumerate(steps)]


def measure_step(embed: Embed, data: StepData, seed: int) -> StepFigures:
    """Measure one step."""
    test, step = data.test, data.step
    sides = (embed(step.first, test.first_NF), embed(step.second, test.second_NF))
    found: dict[str, float | None] = {}
    if "accuracy" in step.tests:
        found["accuracy"] = _accuracy(embed, sides[test.queries], test)
    if "recall" in step.tests:
        names = ("recall_at_1", "recall_at_5", "recall_at_10")
        found |= dict(zip(names, drawn_recall(*sides, seed), strict=True))
    return StepFigures(**found)


def _accuracy(embed: Embed, queries_NE: Tensor, test: EvaluationRows) -> float:
    assert test.texts_CF is not None
    assert test.classes_N is not None
    texts_CE = embed("text", test.texts_CF)
    return float(((queries_NE @ texts_CE.mT).argmax(dim=1) == test.classes_N).double().mean())


def drawn_recall(first_NE: Tensor, second_NE: Tensor, seed: int) -> list[float]:
    """R@1, R@5, R@10, the mean over draws and both directions. Only a row's own partner is a hit."""
    generator = torch.Generator().manual_seed(seed)
    draws = []
    # Draws of all rows are the same.
    for _ in range(DRAWS if len(first_NE) > ROWS_OF_A_DRAW else 1):
        drawn_D = torch.randperm(len(first_NE), generator=generator)[:ROWS_OF_A_DRAW]
        scores_DD = first_NE[drawn_D] @ second_NE[drawn_D].mT
        draws += [_recalls(scores_DD), _recalls(scores_DD.mT)]
    return [fmean(column) for column in zip(*draws, strict=True)]


def _recalls(scores_DD: Tensor) -> tuple[float, float, float]:
    best_DK = scores_DD.topk(min(_BEST, len(scores_DD)), dim=1).indices
    hits_DK = best_DK == torch.arange(len(scores_DD))[:, None]
    at_1, at_5, at_10 = (
        float(hits_DK[:, :count].any(dim=1).double().mean()) for count in (1, 5, _BEST)
    )
    return at_1, at_5, at_10


def summary(matrix: Matrix) -> dict[str, float | None]:
    """Return the published figures of one run: means at the end, and backward transfer of Acc and R@10."""
    found = {name: mean_of([getattr(one, name) for one in matrix[-1]]) for name in FIGURES}
    if len(matrix) > 1:
        for name in ("accuracy", "recall_at_10"):
            found[f"bwt_{name}"] = backward_transfer(matrix, name)
    return found


def backward_transfer(matrix: Matrix, name: str) -> float | None:
    """Mean over all but the last step of (at the end − when learned), over steps that have the test."""
    changes = []
    for place in range(len(matrix) - 1):
        now, then = getattr(matrix[-1][place], name), getattr(matrix[place][place], name)
        if now is not None:
            changes.append(now - then)
    return mean_of(changes)


def stored(matrix: Matrix) -> list[list[dict[str, float | None]]]:
    """The matrix as JSON."""
    return [[asdict(one) for one in row] for row in matrix]


def restored(rows: Sequence[Sequence[dict[str, float | None]]]) -> list[list[StepFigures]]:
    """The matrix of `stored`."""
    return [[StepFigures.of(one) for one in row] for row in rows]
