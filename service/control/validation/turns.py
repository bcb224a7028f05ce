"""Whose turn it is to have files read: nobody waits for ever behind somebody who sends too many."""

import threading
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """A dataset whose job is validated, for the how many-th time, and whose it is.

    What was found in an earlier turn, which another service ended, says nothing about the files as
    they are now.
    """

    dataset: str
    number: int
    owner: str


class Turns:
    """So many at a time. The last place is kept for an owner who has none; safe for several threads."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._waiting: list[Turn] = []
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def wait(self, turn: Turn) -> None:
        """It comes behind those that wait already."""
        with self._lock:
            self._waiting.append(turn)

    def leave(self, turn: Turn) -> None:
        """It does not wait any more, if it did."""
        with self._lock:
            self._waiting = [other for other in self._waiting if other != turn]

    def take(self) -> Turn | None:
        """Of the owner with the fewest places, the one that waits longest; None if none may begin."""
        with self._lock:
            free = self._places - self._taken.total()
            able = [turn for turn in self._waiting if free > 1 or not self._taken[turn.owner]]
            if free < 1 or not able:
                return None
            turn = min(able, key=lambda each: self._taken[each.owner])
            self._waiting.remove(turn)
            self._taken[turn.owner] += 1
            return turn

    def give_back(self, turn: Turn) -> None:
        """It has ended."""
        with self._lock:
            self._taken[turn.owner] -= 1
            # Only those that hold something: owners come and go for years.
            self._taken += Counter()
