"""Faults during training. Each action returns the time of the fault."""

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from benchmarks.faults.attempts import Size
from benchmarks.faults.scene import Scene

STORE_AWAY_SECONDS = 30.0
NOTICE_SECONDS = 12
# Much shorter than the default of a minute, because everything else here takes seconds.
PEER_SECONDS = 15
_FIXED, _ELASTIC = (2, 2), (2, 1)
_NEVER = "100000"
Act = Callable[[Scene], float]


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
    def act(scene: Scene) -> float:
        victim = scene.nodes.find(words)
        now = time.monotonic()
        victim.kill()
        return now

    return act


def _kill_rank(number: int) -> Act:
    return _signalled(number, signal.SIGKILL)


def _hang_rank(number: int) -> Act:
    return _signalled(number, signal.SIGSTOP)


def _signalled(number: int, what: signal.Signals) -> Act:
    def act(scene: Scene) -> float:
        victim = scene.nodes.ranks(scene.driver_log)[number]
        now = time.monotonic()
        victim.send_signal(what)
        return now

    return act


def _kill_driver(scene: Scene) -> float:
    now = time.monotonic()
    scene.driver.kill()
    return now


def _kill_node(scene: Scene) -> float:
    """Kill the node of rank 1, and start a replacement."""
    now = _lose_node(scene)
    scene.nodes.add("127.0.0.4")
    return now


def _lose_node(scene: Scene) -> float:
    """Kill the node of rank 1, without a replacement."""
    victim = scene.nodes.node_of(scene.nodes.ranks(scene.driver_log)[1])
    now = time.monotonic()
    scene.nodes.kill(victim)
    return now


def _kill_head(scene: Scene) -> float:
    """Kill the head and, as in Kubernetes, all other nodes; then start a new cluster at the same
    address."""
    now = time.monotonic()
    for ip in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        scene.nodes.kill(ip)
    scene.stop()
    scene.nodes.start_head()
    scene.nodes.add("127.0.0.4")
    scene.nodes.add("127.0.0.5")
    return now


def _shut_store(scene: Scene) -> float:
    if scene.door is None:
        raise LookupError("this case needs a store behind a proxy")
    now = time.monotonic()
    scene.door.shut()
    scene.look_on(STORE_AWAY_SECONDS)
    scene.door.is_open = True
    return now


def _drain_node(scene: Scene) -> float:
    """Start a replacement, announce the preemption of a node, and kill it. Return the time of the
    kill."""
    victim = scene.nodes.node_of(scene.nodes.ranks(scene.driver_log)[1])
    scene.nodes.add("127.0.0.4")
    scene.nodes.drain(victim, NOTICE_SECONDS)
    scene.look_on(NOTICE_SECONDS)
    now = time.monotonic()
    scene.nodes.kill(victim)
    return now


_HANGS = {"CMCL_PEER_SECONDS": str(PEER_SECONDS)}
CASES: Mapping[str, Case] = {
    "rank": Case("kill -9 of a rank", _kill_rank(1)),
    "leader": Case("kill -9 of the leading rank", _kill_rank(0)),
    "controller": Case("kill -9 of Ray Train's controller", _killed("TrainController")),
    "driver": Case("kill -9 of the driver", _kill_driver),
    "node": Case("kill -9 of a node, another comes", _kill_node),
    "elastic": Case("kill -9 of a node, none comes; 1 to 2 ranks", _lose_node, _ELASTIC),
    "head": Case("kill -9 of the head and all nodes", _kill_head),
    "hang": Case("a rank hangs (SIGSTOP)", _hang_rank(1), settings=_HANGS),
    "leader-hang": Case("the leading rank hangs", _hang_rank(0), settings=_HANGS),
    "store": Case(
        f"the store is away for {STORE_AWAY_SECONDS:g} s",
        _shut_store,
        store="s3",
        share=0.1,
        longer=5,
    ),
    "notice": Case(
        f"a node goes after a notice of {NOTICE_SECONDS} s",
        _drain_node,
        # So that the checkpoint that the notice triggers is the only one.
        settings={"CMCL_CHECKPOINT_SECONDS": _NEVER},
        share=0.2,
        longer=5,
    ),
}
