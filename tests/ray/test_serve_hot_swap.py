"""A hot swap behind Ray Serve: the replica stays, the version changes, no request fails."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
import torch

from cmcl.contract.model import ModelSpec
from cmcl.contract.version import ANNOUNCEMENTS, LivePointer
from cmcl.stack import LocalStack
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import write_live
from tests.fakes.versions import publish_version, random_heads

MODEL = "hot-swap"
SPEC = ModelSpec(width=16, modalities={"image": 12, "text": 8})
VERSIONS = 4
SECONDS = 120.0
# A process that imports torch and Ray, beside all the others.
STARTING_SECONDS = 200.0


def ask(client: httpx.Client, features: torch.Tensor, **changes: object) -> httpx.Response:
    body = {"model": MODEL, "modality": "image", "input": features.tolist(), **changes}
    headers = {"x-min-model-version": "1"}
    return client.post("/v1/embeddings", json=body, headers=headers)


def assert_truthful(response: httpx.Response, features: torch.Tensor) -> int:
    """Check the response against the version that it names; return that version."""
    assert response.status_code == 200, response.text
    version = int(response.headers["x-model-version"])
    expected = random_heads(SPEC, seed=version).embed("image", features)
    got = torch.tensor([each["embedding"] for each in response.json()["data"]])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    return version


def publish(store: ObjectStore, version: int, model: str = MODEL) -> None:
    publish_version(store, model, version, SPEC, random_heads(SPEC, version), generation=version)


def wait_for_the_first(client: httpx.Client, features: torch.Tensor) -> None:
    """Wait for version 1: on a busy machine that may take longer than a request waits."""
    deadline = time.monotonic() + SECONDS
    while ask(client, features).status_code in (404, 503):
        assert time.monotonic() < deadline, "no version came"


def wait_for(client: httpx.Client, features: torch.Tensor, version: int) -> None:
    deadline = time.monotonic() + SECONDS
    while assert_truthful(ask(client, features), features) != version:
        assert time.monotonic() < deadline, f"version {version} did not come"


def test_a_served_model_swaps_without_a_failed_request(serve_url: str, store: ObjectStore) -> None:
    features = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    publish(store, 1)
    stop, seen = threading.Event(), []

    def ask_all_the_time() -> None:
        with httpx.Client(base_url=serve_url, timeout=SECONDS) as client:
            while not stop.is_set():
                seen.append(ask(client, features))

    with httpx.Client(base_url=serve_url, timeout=SECONDS) as client:
        wait_for_the_first(client, features)
        asking = threading.Thread(target=ask_all_the_time)
        asking.start()
        try:
            while asking.is_alive() and not seen:
                time.sleep(0.01)
            for version in range(2, VERSIONS + 1):
                publish(store, version)
                wait_for(client, features, version)
            # Of two answers more, one was asked for after that.
            enough = len(seen) + 2
            while asking.is_alive() and len(seen) < enough:
                time.sleep(0.01)
            write_live(store, MODEL, LivePointer(generation=VERSIONS + 1, version=2))
            wait_for(client, features, version=2)
        finally:
            stop.set()
            asking.join()
        assert assert_truthful(ask(client, features, model=f"{MODEL}@1"), features) == 1
        assert ask(client, features[:, :5]).status_code == 400
        models = client.get("/v1/models").json()["data"]
    assert {assert_truthful(response, features) for response in seen} >= {1, 2, VERSIONS}
    mine = next(each for each in models if each["id"] == MODEL)
    assert (mine["version"], mine["generation"]) == (2, VERSIONS + 1)


@pytest.fixture
def slow_looker(stack: LocalStack) -> Iterator[subprocess.Popen[bytes]]:
    """Another follower of the store, connected to the announcements, which polls once an hour."""
    command = [sys.executable, "-m", "tests.ray.slow_follower", stack.store_uri]
    with ExitStack() as closing:
        for is_last in (False, True):
            process = stack.start_driver(command)
            closing.callback(process.wait)
            closing.callback(process.kill)
            try:
                wait_until_printed(process, stack, "connected")
                break
            except AssertionError:
                # On a very busy machine a process may fail to join Ray.
                if is_last:
                    raise
                process.kill()
        yield process


def wait_until_printed(process: subprocess.Popen[bytes], stack: LocalStack, line: str) -> None:
    deadline = time.monotonic() + STARTING_SECONDS
    while line not in (printed := stack.log("driver").read_text().splitlines()):
        assert process.poll() is None, printed[-20:]
        assert time.monotonic() < deadline, f"{line!r} was not printed, but {printed[-40:]}"
        time.sleep(0.01)


def test_an_announced_swap_does_not_wait_for_the_next_poll(
    stack: LocalStack, serve_url: str, store: ObjectStore, slow_looker: subprocess.Popen[bytes]
) -> None:
    for version in range(1, VERSIONS + 1):
        publish(store, version, "announced")
        answer = httpx.post(f"{serve_url}{ANNOUNCEMENTS}", timeout=SECONDS)
        assert answer.status_code == 202, answer.text
        wait_until_printed(slow_looker, stack, f"announced@{version}")
