"""`ServeMetrics` by means of Ray, whose nodes export to Prometheus."""

from ray.util.metrics import Counter, Gauge


class RayMetrics:
    """Ray's own metrics, because prometheus_client inside a Ray worker is exported by nobody."""

    def __init__(self) -> None:
        self._requests = _counter("requests_total", "Requests by HTTP status.", "status")
        self._rows = _counter("rows_total", "Rows that were embedded.", "model")
        self._swaps = _counter("swaps_total", "Changes of the live version.", "model")
        self._refused = _counter(
            "refused_versions_total", "Attempts at loading a live version that failed.", "model"
        )
        self._live = Gauge(
            "cmcl_serve_live_version", "The version that answers.", tag_keys=("model",)
        )

    def answered(self, model: str, rows: int) -> None:
        self._requests.inc(1, {"status": "200"})
        self._rows.inc(rows, {"model": model})

    def turned_away(self, status: int) -> None:
        self._requests.inc(1, {"status": str(status)})

    def swapped(self, model: str, version: int) -> None:
        self._swaps.inc(1, {"model": model})
        self._live.set(version, {"model": model})

    def refused(self, model: str) -> None:
        self._refused.inc(1, {"model": model})


def _counter(name: str, description: str, label: str) -> Counter:
    return Counter(f"cmcl_serve_{name}", description, tag_keys=(label,))
