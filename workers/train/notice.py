"""Whether a node of this group is about to be taken away: then a checkpoint is due at once.

Ray Train tells its ranks, but its call to ask (`ray.train.get_preemption_info`) waits until every
rank has asked as often. So a thread of each rank asks, and the training loop reads a flag. No Ray
and no torch here, and nothing that costs an update anything.
"""

import threading
from collections.abc import Callable

# Ray's watcher looks at the cluster this often too; a notice is given for half a minute or more.
_SECONDS_BETWEEN_QUESTIONS = 1.0

_given = threading.Event()


def notice_given() -> bool:
    """Whether a notice came; it stays for the life of the process, as a node that goes does."""
    return _given.is_set()


def listen_for_notice(
    ask: Callable[[], object | None], seconds: float = _SECONDS_BETWEEN_QUESTIONS
) -> threading.Thread:
    """Ask again and again in a thread until something is answered, which is the notice."""
    thread = threading.Thread(target=_listen, args=[ask, seconds], name="notice", daemon=True)
    thread.start()
    return thread


def _listen(ask: Callable[[], object | None], seconds: float) -> None:
    rest = threading.Event()
    try:
        while (notice := ask()) is None:
            rest.wait(seconds)
    except Exception as error:  # noqa: BLE001
        # It is asked through an actor of Ray Train that goes before its ranks do. A training that
        # hears of no notice is one that was killed without, and that it survives anyway.
        print(f"notices are no longer heard of: {error}", flush=True)
        return
    print(f"a node is about to go: {notice}", flush=True)
    _given.set()
