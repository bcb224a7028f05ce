"""Recall by item counts every row that matches the query, recall by own row one of them; ties count against both."""

import pytest
import torch

from workers.model.heads import PairedRows
from workers.model.loss import unit
from workers.train.evaluation import HeldOut, recall


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


def test_repeated_partner_counts_as_found() -> None:
    """Two rows have the same text: either image answers it, and it answers either image."""
    images, texts = torch.eye(3), torch.eye(3)[[1, 0, 2]]
    by_row = recall(images, texts, held_out([0, 1, 2], [5, 6, 7], None))
    by_content = recall(images, texts, held_out([0, 1, 2], [5, 5, 7], None))
    assert by_row.at_1 == 1 / 3
    assert by_content.at_1 == 1.0


def test_accuracy_is_that_of_the_nearest_class() -> None:
    """Two classes; the third image lies with the texts of the other one."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = recall(images, texts, held_out([0, 1, 2], [3, 4, 5], [0, 1, 0]))
    assert found.accuracy == pytest.approx((2 / 3 + 1) / 2)


def test_a_class_caption_is_found_by_item_and_not_by_row() -> None:
    """Thirty pictures of three classes, each with the text of its class, near it."""
    classes = [row % 3 for row in range(30)]
    texts = torch.eye(4)[:3][classes]
    images = unit(texts + 0.1 * torch.randn(30, 4, generator=torch.Generator().manual_seed(0)))
    found = recall(images, texts, held_out(list(range(30)), classes, None))
    assert (found.at_1, found.at_10) == (1.0, 1.0)
    # From the text to its own picture: one of ten that have this text.
    assert found.own_at_1 == pytest.approx(0.05)
    assert found.own_at_10 == pytest.approx(1.0)
    assert (found.counts, found.rows, found.accuracy) == ("equal item", 30, None)


def test_where_nothing_repeats_the_own_row_is_what_is_counted() -> None:
    generator = torch.Generator().manual_seed(3)
    first = unit(torch.randn(200, 16, generator=generator))
    second = unit(first + 0.5 * torch.randn(200, 16, generator=generator))
    found = recall(first, second, held_out(list(range(200)), list(range(200)), None))
    assert (found.own_at_1, found.own_at_10) == (found.at_1, found.at_10)
    assert found.counts == "own row"


@pytest.mark.parametrize("values", [1, 3])
@pytest.mark.parametrize("count", [3, 10, 11, 12, 60])
def test_places_are_those_of_counting_row_by_row(count: int, values: int) -> None:
    """Scores of few values, so that many rows tie or all do, also at the tenth place; items and labels repeat."""
    generator = torch.Generator().manual_seed(count)
    first, second = (torch.randint(values, (count, 3), generator=generator) - 1.0 for _ in "ab")
    second_keys = second.unique(dim=0, return_inverse=True)[1].tolist()
    first_keys = torch.randint(0, count, (count,), generator=generator).tolist()
    labels = torch.randint(0, 4, (count,), generator=generator).tolist()
    found = recall(first, second, held_out(first_keys, second_keys, labels))
    places: dict[str, list[int]] = {"label": [], "item": [], "own": []}
    for scores, keys in (
        ((first @ second.mT).tolist(), second_keys),
        ((second @ first.mT).tolist(), first_keys),
    ):
        for query in range(count):
            item = {
                row
                for row in range(count)
                if first_keys[row] == first_keys[query] or second_keys[row] == second_keys[query]
            }
            label = item | {row for row in range(count) if labels[row] == labels[query]}
            places["label"].append(place(scores[query], label))
            places["item"].append(place(scores[query], item))
            same = {row for row in range(count) if keys[row] == keys[query]}
            places["own"].append(place(scores[query], same) + len(same) - 1)
    assert found.at_1 == pytest.approx(share(places["label"], 1))
    assert found.at_5 == pytest.approx(share(places["item"], 5))
    assert found.at_10 == pytest.approx(share(places["item"], 10))
    assert found.own_at_1 == pytest.approx(share(places["own"], 1))
    assert found.own_at_10 == pytest.approx(share(places["own"], 10))


def place(scores: list[float], hits: set[int]) -> int:
    best = max(scores[row] for row in hits)
    return 1 + sum(score >= best for row, score in enumerate(scores) if row not in hits)


def share(places: list[int], most: int) -> float:
    return sum(each <= most for each in places) / len(places)
