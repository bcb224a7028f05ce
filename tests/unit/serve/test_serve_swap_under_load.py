"""Twenty versions are published while clients ask without a pause, over real HTTP."""

import threading
import time
from dataclasses import dataclass, field

import httpx
import torch

from tests.fakes.flaky_store import FlakyStore
from tests.fakes.served_app import served
from tests.fakes.versions import random_heads
from tests.unit.serve.conftest import MODEL, SPEC, Replica
from workers.serve.settings import ServeSettings

VERSIONS = 20
CLIENTS = 4
# More than what is embedded inline, so that swaps fall into requests that are half done.
ROWS = 40


@dataclass
class Answers:
    """Responses that one client got: the version that each names, and its rows."""

    seen: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def ask_until(stop: threading.Event, url: str, rows: list[list[float]], answers: Answers) -> None:
    body = {"model": MODEL, "modality": "image", "input": rows}
    with httpx.Client(base_url=url, timeout=60) as client:
        while not stop.is_set():
            response = client.post("/v1/embeddings", json=body)
            if response.status_code != 200:
                answers.failures.append(response.text)
                continue
            embeddings = torch.tensor([each["embedding"] for each in response.json()["data"]])
            answers.seen.append((int(response.headers["x-model-version"]), embeddings))


def publish_all(replica: Replica, answers: list[Answers]) -> None:
    """Publish one version after another, each once a client got a response of the one before."""
    until_seen(1, answers)
    for version in range(2, VERSIONS + 1):
        replica.publish(version)
        until_seen(version, answers)


def until_seen(version: int, answers: list[Answers]) -> None:
    deadline = time.monotonic() + 60
    while not any(each.seen and each.seen[-1][0] == version for each in answers):
        assert time.monotonic() < deadline, f"no request was answered by version {version}"
        time.sleep(0.01)


def test_no_request_fails_or_mixes_versions_in_swaps(store: FlakyStore) -> None:
    serving = Replica(store, ServeSettings(store=store.uri))
    serving.publish(version=1)
    serving.poll()
    rows = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(0))
    stop, answers = threading.Event(), [Answers() for _ in range(CLIENTS)]
    serving.follower.start()
    with served(serving.app) as url:
        clients = [
            threading.Thread(target=ask_until, args=(stop, url, rows.tolist(), each))
            for each in answers
        ]
        for client in clients:
            client.start()
        try:
            publish_all(serving, answers)
        finally:
            stop.set()
            for client in clients:
                client.join()
            serving.follower.stop()
    check(rows, answers)


def check(rows: torch.Tensor, answers: list[Answers]) -> None:
    expected = {
        version: random_heads(SPEC, seed=version).embed("image", rows)
        for version in range(1, VERSIONS + 1)
    }
    for each in answers:
        assert each.failures == []
        versions = [version for version, _ in each.seen]
        assert versions == sorted(versions)
        for version, embeddings in each.seen:
            torch.testing.assert_close(embeddings, expected[version], atol=1e-5, rtol=0)
