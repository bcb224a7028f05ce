"""The checker of histories: a correct one passes, and each defect planted in it is named."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.chaos.history import (
    Answer,
    Embedded,
    History,
    Hit,
    Outcome,
    PointerSeen,
    Posted,
    Promoted,
    Search,
    Write,
    violations,
)


def embed(key: Embedded) -> list[float]:
    """A vector of unit length that differs by version and row."""
    cosine = 1 / (1 + key.version + key.row)
    return [cosine, (1 - cosine**2) ** 0.5]


def score(version: int, row: int, other: int) -> float:
    one, two = (embed(Embedded("m", version, "image", each)) for each in (row, other))
    return sum(a * b for a, b in zip(one, two, strict=True))


def manifest(number: int, *learned: str) -> Any:
    return SimpleNamespace(
        version=number,
        parent=number - 1 or None,
        dataset=learned[-1],
        job=f"job-{learned[-1]}",
        learned=[SimpleNamespace(dataset=each) for each in learned],
    )


def history() -> History:
    """Two datasets were learned, the first version was live again, and items were written and found."""
    write = Write("i1", 2, 11)
    found = Answer("m", 30.0, 31.0, 1, 0)
    return History(
        posted=[
            Posted("m", "one", "job-ds-1", "published", ""),
            Posted("m", "two", "job-ds-2", "published", ""),
        ],
        pointers=[PointerSeen("m", 10.0, 10.1, 1, 1), PointerSeen("m", 20.0, 20.1, 2, 2)],
        answers=[
            Answer("m", 11.0, 11.1, 1, 0),
            Answer("m", 21.0, 21.1, 2, 1),
            Answer("m", 31.0, 31.1, 1, 1),
        ],
        vectors={
            Embedded("m", version, "image", 3): embed(Embedded("m", version, "image", 3))
            for version in (1, 2)
        },
        writes=[
            Write("i1", 1, 10),
            write,
            Write("i2", 3, None),
            Write("i3", 4, 12),
            Write("i3", None, 13),
        ],
        searches=[Search(found, "image", 0, write, (Hit("i1", 2, 5, score(1, 0, 5)),))],
    )


def outcome() -> Outcome:
    return Outcome(
        versions={"m": [manifest(1, "ds-1"), manifest(2, "ds-1", "ds-2")]},
        promotions={"m": [Promoted(1, 1, 9.0), Promoted(2, 2, 19.0), Promoted(3, 1, 29.0)]},
        live={"m": PointerSeen("m", 40.0, 40.1, 1, 3)},
        items={"i1": 2, "i2": 3},
    )


def test_a_history_of_a_correct_system_has_no_violation() -> None:
    assert violations(history(), outcome(), embed) == []
    lost = replace(outcome(), items={"i1": 2})
    assert violations(history(), lost, embed) == [], (
        "a write without an acknowledgement may be lost"
    )


PLANTED: dict[str, tuple[Callable[[History], None], dict[str, Any], str]] = {
    "a dataset is lost": (
        lambda seen: seen.posted.append(Posted("m", "three", "job-ds-3", "failed", "killed")),
        {},
        "three was accepted and is lost: failed, killed",
    ),
    "a dataset is learned twice": (
        lambda seen: None,
        {"versions": {"m": [manifest(1, "ds-1"), manifest(2, "ds-1", "ds-1")]}},
        "a dataset was learned twice",
    ),
    "a version is missing": (
        lambda seen: None,
        {"versions": {"m": [manifest(1, "ds-1"), manifest(3, "ds-1", "ds-2")]}},
        "version 3 with parent 2 is number 2",
    ),
    "a lineage forgets": (
        lambda seen: None,
        {"versions": {"m": [manifest(1, "ds-1"), manifest(2, "ds-2")]}},
        "m@2 has not learned what its parent has",
    ),
    "a pointer goes back": (
        lambda seen: seen.pointers.append(PointerSeen("m", 22.0, 22.1, 1, 1)),
        {},
        "after generation 2 was seen",
    ),
    "a generation has two versions": (
        lambda seen: seen.pointers.append(PointerSeen("m", 22.0, 22.1, 1, 2)),
        {},
        "is not what the list of promotions has",
    ),
    "a promotion is lost": (
        lambda seen: None,
        {"promotions": {"m": [Promoted(1, 1, 9.0), Promoted(3, 1, 29.0)]}},
        "the generations are [1, 3]",
    ),
    "an answer goes back": (
        # Before version 1 was live again.
        lambda seen: seen.answers.append(Answer("m", 22.0, 22.1, 1, 0)),
        {},
        "was not live then, after generation 2 was answered",
    ),
    "an answer is ahead of the pointer": (
        lambda seen: seen.answers.append(Answer("m", 12.0, 12.1, 2, 0)),
        {},
        "was not live then",
    ),
    "an answer is older than was asked for": (
        lambda seen: seen.answers.append(Answer("m", 32.0, 32.1, 1, 2)),
        {},
        "is of an earlier version than was asked for",
    ),
    "an answer is of another version": (
        lambda seen: seen.vectors.update(
            {Embedded("m", 1, "image", 4): embed(Embedded("m", 2, "image", 4))}
        ),
        {},
        "is not what the heads of that version give",
    ),
    "a version answers in two ways": (
        lambda seen: seen.add_vector(Embedded("m", 1, "image", 3), [0.6, 0.8]),
        {},
        "was answered in two ways",
    ),
    "a search misses the write": (
        lambda seen: seen.searches.append(replace(seen.searches[0], hits=())),
        {},
        "did not find what was written",
    ),
    "a search mixes versions": (
        lambda seen: seen.searches.append(
            replace(seen.searches[0], hits=(Hit("i1", 2, 5, score(2, 0, 5)),))
        ),
        {},
        "has a score of another version",
    ),
    "an acknowledged write is lost": (
        lambda seen: None,
        {"items": {"i1": 1}},
        "item i1 is from write 1, not from {2}",
    ),
    "a removed item is back": (
        lambda seen: None,
        {"items": {"i1": 2, "i3": 4}},
        "item i3 is from write 4, not from {None}",
    ),
    "an item appears": (
        lambda seen: None,
        {"items": {"i1": 2, "i9": 7}},
        "item i9 was never written",
    ),
}


@pytest.mark.parametrize("defect", PLANTED)
def test_each_defect_is_named(defect: str) -> None:
    plant, changed, message = PLANTED[defect]
    seen = history()
    plant(seen)
    found = violations(seen, replace(outcome(), **changed), embed)
    assert found
    assert any(message in each for each in found), found
