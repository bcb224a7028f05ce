"""A flow driven by hand: no network, and no waiting."""

from collections.abc import Iterable
from typing import Any

import httpx

from cmcl.flow.effects import Exchange, Flow, Pause


class Driven:
    """A flow with prepared outcomes of its exchanges: what it sent, and how long it paused."""

    def __init__(self, flow: Flow[Any], outcomes: Iterable[httpx.Response | Exception]) -> None:
        self.sent: list[Exchange] = []
        self.paused: list[float] = []
        self.result: Any = None
        left = iter(outcomes)
        effect = next(flow)
        try:
            while True:
                effect = self._carry(flow, effect, left)
        except StopIteration as end:
            self.result = end.value

    def _carry(self, flow: Flow[Any], effect: object, left: Any) -> Any:
        if isinstance(effect, Pause):
            self.paused.append(effect.seconds)
            return flow.send(None)
        assert isinstance(effect, Exchange)
        self.sent.append(effect)
        outcome = next(left)
        return flow.throw(outcome) if isinstance(outcome, Exception) else flow.send(outcome)
