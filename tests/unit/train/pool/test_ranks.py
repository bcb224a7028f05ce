"""A group that has started is one of which all ranks are there."""

from typing import Any

import pytest
import torch

from workers.train.distributed import World
from workers.train.pool import ranks
from workers.train.pool.queue import Retire


class Called:
    """An actor whose methods return their names, and retire a rank that requests work."""

    def __init__(self, story: list[str]) -> None:
        self._story = story

    def __getattr__(self, name: str) -> "Method":
        return Method(name, self._story)


class Method:
    """A remote method that is answered at once."""

    def __init__(self, name: str, story: list[str]) -> None:
        self._name, self._story = name, story

    def remote(self, *_: Any) -> Any:
        """The answer, as no Ray is there to fetch it."""
        self._story.append(self._name)
        return Retire() if self._name == "next" else None


@pytest.mark.parametrize(
    ("rank", "expected"),
    [(0, ["meet", "group_started", "meet", "next"]), (1, ["meet", "meet", "next"])],
)
def test_a_group_is_reported_once_all_ranks_joined_and_before_any_requests_work(
    rank: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    story: list[str] = []
    monkeypatch.setattr(ranks.ray, "get_actor", lambda *_: Called(story))
    monkeypatch.setattr(ranks.ray, "get", lambda answer: answer)
    monkeypatch.setattr(ranks, "world", lambda: World(rank, 2))
    monkeypatch.setattr(ranks, "_import_optimizer", lambda: None)
    monkeypatch.setattr(ranks, "_exit_when_abandoned", lambda _: None)
    monkeypatch.setattr(ranks, "barrier", lambda _: story.append("meet"))
    ranks.train_attempts(torch.device("cpu"))
    assert story == expected
