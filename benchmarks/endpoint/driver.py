"""Deploy the endpoint with the given arguments: `python -m benchmarks.endpoint.driver JSON PORT`.

Like `workers.serve`, whose command line supports only the settings of a laptop.
"""

import signal
import sys
import threading

import ray

from workers.serve.__main__ import withdraw
from workers.serve.app import deploy
from workers.serve.settings import ServeSettings


def main(arguments: str, port: str) -> None:
    """Run until SIGTERM."""
    args = ServeSettings.model_validate_json(arguments)
    ray.init(address="auto", log_to_driver=False)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    deploy(args, "127.0.0.1", int(port))
    print("deployed", flush=True)
    stopping.wait()
    withdraw()


if __name__ == "__main__":
    main(*sys.argv[1:])
