"""Rounds of the reconciler in the thread of the test, which decides when each begins."""

import threading

from service.jobs.reconciler import Reconciler
from service.jobs.workqueue import Key, Work, WorkQueue

_ORDER = list(Work)


def run_round(reconciler: Reconciler) -> None:
    """Renew leases, resync, look at the attempts, and process each key that is due once, by model and kind of work."""
    reconciler.step(threading.Event())
    reconciler.resync()
    reconciler.monitor.look()
    queue, processed = reconciler.queue, set[Key]()
    while keys := [key for key in due(queue) if key not in processed]:
        for key in keys:
            processed.add(key)
            reconciler.process(take(queue, key))
    reconciler.beat()


def due(queue: WorkQueue) -> list[Key]:
    """Return the keys that are due, by model and kind of work. They stay due."""
    found = set[Key]()
    while new := set(_take_all(queue)) - found:
        # At most so many keys of low priority are taken at a time. Those found so far now have normal priority.
        found |= new
    return sorted(found, key=lambda key: (key.model, _ORDER.index(key.work)))


def _take_all(queue: WorkQueue) -> list[Key]:
    keys = []
    while (key := queue.get(0)) is not None:
        keys.append(key)
    _put_back(queue, keys)
    return keys


def take(queue: WorkQueue, key: Key) -> Key:
    """Add the key, and return it as taken by a worker that is about to process it. Others stay due."""
    queue.add(key)
    others = []
    while (taken := queue.get(0)) != key:
        assert taken is not None, (
            f"{key} is not due, or as many of its kind are held as workers may process"
        )
        others.append(taken)
    _put_back(queue, others)
    return key


def _put_back(queue: WorkQueue, keys: list[Key]) -> None:
    for key in keys:
        queue.done(key)
        queue.add(key)
