"""One more application on the Serve that runs, with the encoders of a file.

SIGUSR1: deploy it again with what the file has then. SIGTERM: delete it, and end.
"""

import json
import queue
import signal
import sys
from itertools import count
from pathlib import Path

import ray
from ray import serve

from workers.serve.app import build

NAME = "encoded"
PREFIX = f"/{NAME}"


def deployed(times: int) -> str:
    """The line that is printed then."""
    return f"{NAME}: deployed {times}"


def main(store_uri: str, encoders: Path) -> None:
    """Run until a signal ends it."""
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    ray.init(address="auto", log_to_driver=False)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: signals.put(number))
    for times in count(1):
        declared = json.loads(encoders.read_text())
        application = build({"store": store_uri, "num_cpus": 0.1, "encoders": declared})
        serve.run(application, name=NAME, route_prefix=PREFIX)
        print(deployed(times), flush=True)
        if signals.get() != signal.SIGUSR1:
            break
    serve.delete(NAME)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
