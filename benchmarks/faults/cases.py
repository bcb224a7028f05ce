"""Each fault: what is done to a job in the middle of its training. An act answers with the moment."""

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from benchmarks.faults.attempts import Size
from benchmarks.faults.scene import Scene

STORE_AWAY_SECONDS = 30.0
NOTICE_SECONDS = 12
# A hang is one of a minute by default; here everything else takes seconds.
PEER_SECONDS = 15
_FIXED, _ELASTIC = (2, 2), (2, 1)
_NEVER = "100000"
Act = Callable[[Scene], float]


@dataclass(frozen=True)
class Case:
    """A fault, and what it is done to. `ranks`: how many at most and at least.

    `share` of the updates is done when it comes. `longer`: so many times the epochs, where a training
    would be over before the fault is.
    """

    fault: str
    act: Act
    ranks: tuple[int, int] = _FIXED
    store: Literal["file", "s3"] = "file"
    settings: Mapping[str, str] = field(default_factory=dict)
    share: float = 0.4
    longer: int = 1

    def size(self, usual: Size) -> Size:
        """Of the training that it is done to."""
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
    """The machine of the rank that does not lead; another one comes in its place."""
    now = _lose_node(scene)
    scene.nodes.add("127.0.0.4")
    return now


def _lose_node(scene: Scene) -> float:
    """The same, and no other machine comes."""
    victim = scene.nodes.node_of(scene.nodes.ranks(scene.driver_log)[1])
    now = time.monotonic()
    scene.nodes.kill(victim)
    return now


def _kill_head(scene: Scene) -> float:
    """All of the cluster follows, as its pods do; then there is a new one at the same address."""
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
        raise LookupError("this case needs a store with a door")
    now = time.monotonic()
    scene.door.shut()
    scene.look_on(STORE_AWAY_SECONDS)
    scene.door.is_open = True
    return now


def _drain_node(scene: Scene) -> float:
    """Another machine, a notice, and the end that was announced. The moment is that of the end."""
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
        # So that the checkpoint that the notice asks for is the only one.
        settings={"CMCL_CHECKPOINT_SECONDS": _NEVER},
        share=0.2,
        longer=5,
    ),
}
