"""Every kind of store; S3 against a real HTTP server."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from cmcl.storage.object_store import ObjectStore
from cmcl.storage.uris import open_store
from tests.fakes.memory_store import MemoryStore
from tests.fakes.s3_server import s3_server, use_bucket

BUCKET = "contract-suite"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """One server for the session."""
    with s3_server() as address:
        yield address


@pytest.fixture
def s3_environment(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """boto3 finds the bucket as a user would have it."""
    use_bucket(s3_endpoint, BUCKET, monkeypatch)
    return s3_endpoint


@pytest.fixture(params=["file", "s3"])
def open_root(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], ObjectStore]:
    """Opens a store at a folder of one root; each test has a root of its own."""
    if request.param == "memory":
        return cache(lambda folder: MemoryStore())
    if request.param == "file":
        return lambda folder: open_store((tmp_path / "root" / folder).as_uri())
    request.getfixturevalue("s3_environment")
    return lambda folder: open_store(f"s3://{BUCKET}/{tmp_path.name}/{folder}")


@pytest.fixture
def store(open_root: Callable[[str], ObjectStore]) -> ObjectStore:
    """An empty store."""
    return open_root("store")
