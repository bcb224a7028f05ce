"""A bucket that answers slowly, and now and then not at all, and a stack that uses it."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from cmcl.stack import LocalStack

_BUCKET = "chaos"


class StackOnS3(LocalStack):
    """A local stack whose store is a bucket. The endpoint and credentials are in the environment."""

    @property
    def store_uri(self) -> str:
        return f"s3://{_BUCKET}/store"

    def wait_for_driver(self) -> None:
        """Not at all: a dataset that is posted before they are ready waits."""


class _Quiet(WSGIRequestHandler):
    # Clients keep their connections, as those of S3.
    protocol_version = "HTTP/1.1"

    def log_request(self, *_: object) -> None:
        pass


@contextmanager
def slow_s3(seconds: float, errors: float) -> Iterator[None]:
    """Serve S3 in this process; each call takes `seconds`, and a share of `errors` is answered 503.

    Sets the environment variables that boto3 reads, for this process and what it starts.
    """
    moto = DomainDispatcherApplication(create_backend_app)
    chance = random.Random(0)  # noqa: S311
    delay = 0.0

    def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        time.sleep(delay)
        if delay and chance.random() < errors:
            # What was sent is read, so that the connection can be used again.
            environ["wsgi.input"].read()
            start("503 Slow Down", [("Content-Length", "0")])
            return []
        found: Iterable[bytes] = moto(environ, start)
        return found

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "chaos",
        "AWS_SECRET_ACCESS_KEY": "chaos",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    boto3.client("s3").create_bucket(Bucket=_BUCKET)
    delay = seconds
    yield
    server.shutdown()
    thread.join()
