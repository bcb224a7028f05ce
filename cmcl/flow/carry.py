"""A flow as it is carried out: which effect is next, and what came of the last one."""

from collections.abc import Generator
from typing import Any, Generic, TypeVar

import httpx

from cmcl.flow.effects import Effect, Item

T = TypeVar("T")

# What is thrown into a flow; anything else is a mistake of ours and ends the call.
OUTCOMES = (httpx.TransportError, OSError)


class Carried(Generic[T]):
    """One flow. `next` answers None at its end, and then `result` is what it returned."""

    result: T

    def __init__(self, flow: Generator[Effect | Item[Any], Any, T]) -> None:
        self._flow = flow
        self.reply: object = None
        self.error: Exception | None = None

    def next(self) -> Effect | Item[Any] | None:
        """Hand over what came of the last effect; answers the next one."""
        reply, error, self.reply, self.error = self.reply, self.error, None, None
        try:
            return self._flow.throw(error) if error else self._flow.send(reply)
        except StopIteration as end:
            self.result = end.value
            return None

    def close(self) -> None:
        """Whatever the flow still wanted, it does not get."""
        self._flow.close()
