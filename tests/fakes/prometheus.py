"""A Prometheus with some metrics, each with one series, until they end."""

import math
from typing import Any

from deploy.live_prometheus import PrometheusError


class FakePrometheus:
    """An expression has a series if all its words that begin with `cmcl_` are known."""

    def __init__(self, *known: str, end: float = math.inf) -> None:
        self._known = known
        self._end = end

    def ask(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """Raises PrometheusError where a bracket is not closed."""
        if expression.count("(") != expression.count(")"):
            raise PrometheusError("unclosed left parenthesis")
        words = expression.replace("(", " ").replace(")", " ").replace("{", " ").split()
        if at is not None and at > self._end:
            return []
        return [{}] * all(word in self._known for word in words if word.startswith("cmcl_"))
