"""Faults during training. Each action returns the time of the fault."""

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from benchmarks.faults.attempts import Size
from benchmarks.faults.trial import Trial

STORE_AWAY_SECONDS = 30.0
NOTICE_SECONDS = 12
# Much shorter than the default of a minute, because everything else here takes seconds.
PEER_SECONDS = 15
_FIXED, _ELASTIC = (2, 2), (2, 1)
_NEVER = "100000"
Act = Callable[[Trial], float]


@dataclass(frozen=True)
class Case:
    """A fault and its training. `ranks`: maximum and minimum.

    The fault occurs after `share` of the updates. `longer` multiplies the epochs, if training
    would otherwise end before the fault.
    """

    fault: str
    act: Act
    ranks: tuple[int, int] = _FIXED
    store: Literal["file", "s3"] = "file"
    settings: Mapping[str, str] = field(default_factory=dict)
    share: float = 0.4
    longer: int = 1

    def size(self, usual: Size) -> Size:
        """Return the size of the training."""
        return replace(usual, epochs=self.longer * usual.epochs)


def _killed(words: str) -> Act:
    def act(trial: Trial) -> float:
        victim = trial.nodes.find(words)
        now = time.monotonic()
        victim.kill()
        return now

    return act


def _kill_rank(number: int) -> Act:
    return _signalled(number, signal.SIGKILL)


def _hang_rank(number: int) -> Act:
    return _signalled(number, signal.SIGSTOP)


def _signalled(number: int, what: signal.Signals) -> Act:
    def act(trial: Trial) -> float:
        victim = trial.nodes.ranks(trial.driver_log)[number]
        now = time.monotonic()
        victim.send_signal(what)
        return now

    return act


def _kill_driver(trial: Trial) -> float:
    now = time.monotonic()
    trial.driver.kill()
    return now


def _kill_node(trial: Trial) -> float:
    """Kill the node of rank 1, and start a replacement."""
    now = _lose_node(trial)
    trial.nodes.add("127.0.0.4")
    return now


def _lose_node(trial: Trial) -> float:
    """Kill the node of rank 1, without a replacement."""
    victim = trial.nodes.node_of(trial.nodes.ranks(trial.driver_log)[1])
    now = time.monotonic()
    trial.nodes.kill(victim)
    return now


def _kill_head(trial: Trial) -> float:
    """Kill the head and, as in Kubernetes, all other nodes; then start a new cluster at the same
    address."""
    now = time.monotonic()
    for ip in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        trial.nodes.kill(ip)
    trial.stop()
    trial.nodes.start_head()
    trial.nodes.add("127.0.0.4")
    trial.nodes.add("127.0.0.5")
    return now


def _shut_store(trial: Trial) -> float:
    if trial.proxy is None:
        raise LookupError("this case needs a store behind a proxy")
    now = time.monotonic()
    trial.proxy.shut()
    trial.watch_for(STORE_AWAY_SECONDS)
    trial.proxy.is_open = True
    return now


def _drain_node(trial: Trial) -> float:
    """Start a replacement, announce the preemption of a node, and kill it. Return the time of the
    kill."""
    victim = trial.nodes.node_of(trial.nodes.ranks(trial.driver_log)[1])
    trial.nodes.add("127.0.0.4")
    trial.nodes.drain(victim, NOTICE_SECONDS)
    trial.watch_for(NOTICE_SECONDS)
    now = time.monotonic()
    trial.nodes.kill(victim)
    return now


_HANGS = {"CMCL_PEER_SECONDS": str(PEER_SECONDS)}
CASES: Mapping[str, Case] = {
    "rank": Case("kill -9 of a rank", _kill_rank(1)),
    "leader": Case("kill -9 of the leading rank", _kill_rank(0)),
    "controller": Case("kill -9 of Ray Train's controller", _killed("TrainController")),
    "driver": Case("kill -9 of the driver", _kill_driver),
    "node": Case("kill -9 of a node, with a replacement", _kill_node),
    "elastic": Case("kill -9 of a node, without a replacement; 1 to 2 ranks", _lose_node, _ELASTIC),
    "head": Case("kill -9 of the head and all nodes", _kill_head),
    "hang": Case("a rank hangs (SIGSTOP)", _hang_rank(1), settings=_HANGS),
    "leader-hang": Case("the leading rank hangs", _hang_rank(0), settings=_HANGS),
    "store": Case(
        f"the store is unavailable for {STORE_AWAY_SECONDS:g} s",
        _shut_store,
        store="s3",
        share=0.1,
        longer=5,
    ),
    "notice": Case(
        f"a node is preempted after a notice of {NOTICE_SECONDS} s",
        _drain_node,
        # So that the checkpoint that the notice triggers is the only one.
        settings={"CMCL_CHECKPOINT_SECONDS": _NEVER},
        share=0.2,
        longer=5,
    ),
}
