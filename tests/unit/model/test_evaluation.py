"""Recall counts every row that matches the query as found."""

import pytest
import torch

from workers.model.evaluation import HeldOut, recall
from workers.model.loss import unit
from workers.model.rows import PairedRows


def held_out(keys_first: list[int], keys_second: list[int], labels: list[int] | None) -> HeldOut:
    count = len(keys_first)
    return HeldOut(
        PairedRows(
            torch.zeros(count, 1),
            torch.zeros(count, 1),
            torch.tensor(keys_first),
            torch.tensor(keys_second),
        ),
        None if labels is None else torch.tensor(labels),
    )


def test_perfect_embeddings_retrieve_everything() -> None:
    rows = unit(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)))
    found = recall(rows, rows, held_out(list(range(30)), list(range(30)), None))
    assert (found.at_1, found.at_10, found.rows) == (1.0, 1.0, 30)


def test_random_embeddings_retrieve_about_as_often_as_chance() -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = (unit(torch.randn(1000, 16, generator=generator)) for _ in range(2))
    found = recall(first, second, held_out(list(range(1000)), list(range(1000)), None))
    assert found.at_1 < 0.01
    assert 0.002 < found.at_10 < 0.025


def test_repeated_partner_counts_as_found() -> None:
    """Two rows have the same text: either image answers it, and it answers either image."""
    images, texts = torch.eye(3), torch.eye(3)[[1, 0, 2]]
    by_row = recall(images, texts, held_out([0, 1, 2], [5, 6, 7], None))
    by_content = recall(images, texts, held_out([0, 1, 2], [5, 5, 7], None))
    assert by_row.at_1 == 1 / 3
    assert by_content.at_1 == 1.0


def test_same_label_counts_at_one_but_not_at_ten() -> None:
    images, texts = torch.eye(12), torch.eye(12).roll(1, dims=0)
    far = torch.eye(12) * 0 + texts
    found = recall(images, far, held_out(list(range(12)), list(range(12)), [0] * 12))
    assert found.at_1 == 1.0
    assert found.at_10 < 1.0


def test_recall_at_five_is_between_those_at_one_and_ten() -> None:
    generator = torch.Generator().manual_seed(2)
    first = unit(torch.randn(300, 16, generator=generator))
    second = unit(first + 0.5 * torch.randn(300, 16, generator=generator))
    found = recall(first, second, held_out(list(range(300)), list(range(300)), None))
    assert found.at_1 < found.at_5 < found.at_10
    assert found.accuracy is None


def test_accuracy_is_that_of_the_nearest_class() -> None:
    """Two classes; the third image lies with the texts of the other one."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = recall(images, texts, held_out([0, 1, 2], [3, 4, 5], [0, 1, 0]))
    assert found.accuracy == pytest.approx((2 / 3 + 1) / 2)
