"""`bare` as a replica of Ray Serve behind HAProxy, to show the cost of these two.

`python -m benchmarks.peers.wrapped JSON PORT`, like `benchmarks.endpoint.driver`; of the JSON only
`width` is used.
"""

import json
import signal
import sys
import threading

import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.schema import LoggingConfig

from benchmarks.endpoint.stored import heads_of
from benchmarks.peers.bare import create_app

_NAME = "wrapped"
_AT_ONCE = 1024


def application(width: int) -> serve.Application:
    """Return an application with one replica and the endpoint's options that do not affect
    speed."""

    def build() -> FastAPI:
        torch.set_num_threads(1)
        app = create_app(heads_of(1, width))
        app.get("/readyz")(lambda: None)
        return app

    wrapped: serve.Deployment = serve.deployment(
        max_ongoing_requests=_AT_ONCE,
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )(serve.ingress(build)())
    return wrapped.bind()


def main(arguments: str, port: str) -> None:
    """Run until SIGTERM."""
    ray.init(address="auto", log_to_driver=False)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": int(port)})
    serve.run(application(json.loads(arguments)["width"]), name=_NAME, route_prefix="/")
    stopping.wait()
    serve.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(*sys.argv[1:])
