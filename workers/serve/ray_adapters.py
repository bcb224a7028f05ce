"""What a replica has by means of Ray: `ServeMetrics`, the `Channel` between replicas, and its place on a node.

Nodes of Ray export the metrics to Prometheus. The channel is one small actor, found by its name: plain calls of an
actor, because handles of Serve fail outside of replicas where RAY_SERVE_THROUGHPUT_OPTIMIZED is set.
"""

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import ray
from ray._raylet import IMPLICIT_RESOURCE_PREFIX  # type: ignore[attr-defined]  # compiled
from ray.exceptions import RayError
from ray.util.metrics import Counter, Gauge, Histogram

from workers.serve.announcements import WAIT_SECONDS, Broadcaster, ChannelLost

_FLUSH_SECONDS = 1.0
# An observation costs ten microseconds, a request ten times that: every eighth is observed.
_OBSERVED = 8
_SECONDS = [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 4, 16]
_ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096]

# Part of the actor's name: another version of the protocol has another actor.
_PROTOCOL = 2
_NAME, _NAMESPACE = f"cmcl-announcements-{_PROTOCOL}", "cmcl"
# Each replica has one call under way: as many as there may be, and those that replace them.
_CALLS_AT_ONCE = 2500
_ANSWER_SECONDS = WAIT_SECONDS + 10

_Tags = tuple[tuple[str, str], ...]


class RayMetrics:
    """Ray's metrics: what prometheus_client counts inside a Ray worker is not exported.

    Counters are summed here, and exported once a second together with every gauge.
    """

    def __init__(self) -> None:
        self._series = _Series(**_counters())
        self._connected = _gauge(
            "announcements_connected", "1 where replicas receive announcements of changes."
        )
        # From the start, so that an endpoint without a model has the series.
        self._series.set(self._connected, 0)
        self._lag = _gauge(
            "generations_behind", "Generations of the live version behind its pointer.", "model"
        )
        self._swap = _histogram(
            "swap_seconds", "From reading a pointer to its version being live.", _SECONDS, "model"
        )
        self._request = _histogram(
            "request_seconds", "One request in eight, whole.", _SECONDS, "model"
        )
        self._stage = _histogram(
            "stage_seconds", "One request in eight, by stage.", _SECONDS, "stage"
        )
        self._batch_rows = _histogram("batch_rows", "Rows of one product, every eighth.", _ROWS)
        self._batch_requests = _histogram(
            "batch_requests", "Requests that shared one product, every eighth.", _ROWS
        )
        self._answers, self._batches = count(), count()

    def watch(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read once a second."""
        self._series.watched.append((_gauge(name, description), read))

    def answered(self, model: str, rows: int, seconds: float) -> None:
        self._series.add("rows", rows, model=model)
        if next(self._answers) % _OBSERVED == 0:
            self._request.observe(seconds, {"model": model})

    def finished(self, status: int) -> None:
        self._series.add("requests", 1, status=str(status))

    def batch(self, requests: int, rows: int) -> None:
        if next(self._batches) % _OBSERVED == 0:
            self._batch_rows.observe(rows)
            self._batch_requests.observe(requests)

    def stage(self, name: str, seconds: float) -> None:
        self._stage.observe(seconds, {"stage": name})

    def swapped(self, model: str, version: int, seconds: float) -> None:
        self._swap.observe(seconds, {"model": model})

    def refused(self, model: str, kind: str) -> None:
        self._series.add("refused", 1, model=model, reason=kind)

    def lag(self, model: str, generations: int) -> None:
        self._series.set(self._lag, generations, model=model)

    def gone(self, model: str) -> None:
        self._series.forget(self._lag, model=model)

    def evicted(self, model: str) -> None:
        self._series.add("evicted", 1, model=model)

    def key_list_refused(self) -> None:
        self._series.add("refused_key_lists", 1)

    def connected(self, announcements: bool) -> None:
        self._series.set(self._connected, float(announcements))


class _Series:
    """Sums of counters since the last export, and present values of gauges; for any thread.

    Ray drops a gauge that was not set for two of its report intervals (20 s), so the thread here sets
    each of them every second, changed or not. One that is forgotten disappears after those 20 s.
    """

    def __init__(self, **counters: Counter) -> None:
        self._counters = counters
        self.watched: list[tuple[Gauge, Callable[[], float]]] = []
        self._sums: defaultdict[tuple[str, _Tags], float] = defaultdict(float)
        self._values: dict[tuple[Gauge, _Tags], float] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="metrics", daemon=True).start()

    def add(self, name: str, amount: float, **tags: str) -> None:
        with self._lock:
            self._sums[name, tuple(tags.items())] += amount

    def set(self, gauge: Gauge, value: float, **tags: str) -> None:
        with self._lock:
            self._values[gauge, tuple(tags.items())] = value

    def forget(self, gauge: Gauge, **tags: str) -> None:
        """Drop the value with these tags."""
        with self._lock:
            self._values.pop((gauge, tuple(tags.items())), None)

    def _run(self) -> None:
        while not self._stopped.wait(_FLUSH_SECONDS):
            with self._lock:
                sums, self._sums = self._sums, defaultdict(float)
                values = dict(self._values)
            for (name, tags), amount in sums.items():
                self._counters[name].inc(amount, dict(tags))
            for (gauge, tags), value in values.items():
                gauge.set(value, dict(tags))
            for gauge, read in self.watched:
                gauge.set(read())


def _counters() -> dict[str, Counter]:
    """The counters, by the names that `_Series.add` takes."""
    return {
        "requests": _counter("requests_total", "Requests by HTTP status.", "status"),
        "rows": _counter("rows_total", "Rows that were embedded.", "model"),
        "refused": _counter(
            "refused_versions_total",
            "Attempts at loading a version that failed.",
            "model",
            "reason",
        ),
        "refused_key_lists": _counter(
            "refused_key_lists_total", "Lists of keys that were not valid."
        ),
        "evicted": _counter(
            "evicted_versions_total",
            "Versions evicted because the memory budget was full.",
            "model",
        ),
    }


def _counter(name: str, description: str, *labels: str) -> Counter:
    return Counter(f"cmcl_serve_{name}", description, tag_keys=labels)


def _gauge(name: str, description: str, *labels: str) -> Gauge:
    return Gauge(f"cmcl_serve_{name}", description, tag_keys=labels)


def _histogram(name: str, description: str, bounds: Sequence[float], *labels: str) -> Histogram:
    return Histogram(f"cmcl_serve_{name}", description, boundaries=list(bounds), tag_keys=labels)


class ActorChannel:
    """See the port, `Channel`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def announce(self) -> None:
        """See the port: the answer is not waited for."""
        self._actor.announce.remote()

    def wait(self, seen: int) -> int:
        try:
            # Not ray.get: inside of a replica it warns that it would hold up the event loop.
            count: int = self._actor.wait.remote(seen).future().result(_ANSWER_SECONDS)
        except (RayError, TimeoutError) as error:
            raise ChannelLost(str(error)) from error
        return count


def open_channel() -> ActorChannel:
    """The cluster's channel; its actor is made if there is none. Raises ChannelLost."""
    try:
        actor = ray.remote(Broadcaster).options(
            name=_NAME,
            namespace=_NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=_CALLS_AT_ONCE,
        )
        return ActorChannel(actor.remote())
    except (RayError, ConnectionError) as error:
        raise ChannelLost(str(error)) from error


def close_channel() -> None:
    """Kill the actor, which would outlive the application."""
    try:
        actor = ray.get_actor(_NAME, _NAMESPACE)
    except ValueError:
        return  # There is none.
    ray.kill(actor)


# Resources that only nodes of replicas, or of encoders, have.
REPLICA, ENCODER = "cmcl_replica", "cmcl_encoder"
# Ray counts in ten-thousandths, and rounds: exact for up to a hundred on a node.
_GRAIN = 10_000


def at_most_per_node(resource: str, per_node: int, generation: str) -> dict[str, Any]:
    """Return the actor options of one of at most `per_node` of its generation on a node, in a cluster with nodes for it.

    It reserves one of that resource in place of CPUs, and ranks CPUs, which those nodes do not have, so that they do not
    displace each other. No node takes more than its share, which would leave nothing for a node that joins a moment
    later. Each generation is counted separately, so that new ones start beside old ones. `max_replicas_per_node` of
    Serve counts all together: an update found no space on full nodes, and never ended.
    """
    # Every node has one of each resource whose name begins with this prefix.
    counted = f"{IMPLICIT_RESOURCE_PREFIX}{resource}:{generation}"
    share = math.floor(_GRAIN / per_node) / _GRAIN
    return {"num_cpus": 0, "resources": {resource: 1, counted: share}}
