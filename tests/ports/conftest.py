"""Both kinds of store, the second against a real HTTP server."""

from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from workers.storage.port import ObjectStore
from workers.storage.uris import open_store

BUCKET = "contract-suite"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """moto's server: the one that knows conditional writes."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a user would set: boto3 finds everything by itself."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    return s3_endpoint


@pytest.fixture(params=["file", "s3"])
def open_root(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], ObjectStore]:
    """Opens a store at a folder of one root; each test has a root of its own."""
    if request.param == "file":
        return lambda folder: open_store((tmp_path / "root" / folder).as_uri())
    request.getfixturevalue("s3_environment")
    return lambda folder: open_store(f"s3://{BUCKET}/{tmp_path.name}/{folder}")


@pytest.fixture
def store(open_root: Callable[[str], ObjectStore]) -> ObjectStore:
    """An empty store of either kind."""
    return open_root("store")
