"""An app on a real local socket, in a thread, with the protocol of our replicas: for tests that observe
a request in progress.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from workers.serve.api.middleware import HttpProtocol


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Serve until the block ends; yields the address. The app's lifespan does not run."""
    config = uvicorn.Config(
        app, port=0, http=HttpProtocol, lifespan="off", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="served app")
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
