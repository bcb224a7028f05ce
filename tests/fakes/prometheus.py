"""A Prometheus that knows some metrics, each with one series."""

from typing import Any

from deploy.live_prometheus import PrometheusError


class FakePrometheus:
    """An expression has a series if all its words that begin with `cmcl_` are known."""

    def __init__(self, *known: str) -> None:
        self._known = known
        self.asked: list[str] = []

    def ask(self, expression: str, seconds: float) -> list[dict[str, Any]]:
        """Raises PrometheusError where a bracket is not closed."""
        self.asked.append(expression)
        if expression.count("(") != expression.count(")"):
            raise PrometheusError("unclosed left parenthesis")
        words = expression.replace("(", " ").replace(")", " ").replace("{", " ").split()
        return [{}] * all(word in self._known for word in words if word.startswith("cmcl_"))
