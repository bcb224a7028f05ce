"""Pools of encoders: a lease ends also if its actors do not answer."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cmcl.contract.encoder import EncoderSpec
from cmcl.contract.model import ModelSpec
from cmcl.contract.prepare import PrepareRequest
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from tests.fakes.preparation import Ground
from tests.fakes.ray_actors import Actors
from tests.unit.prepare.test_prepare_server import steps_until
from workers.encoders.port import EncoderUnusable
from workers.prepare import cluster
from workers.prepare.cluster import EncoderPools
from workers.prepare.progress import DatasetProgress, ProgressWriter
from workers.prepare.server import PrepareServer

WORDS = EncoderSpec(name="words", kind="synthetic", takes="text", width=3, actors=2)
MODEL = ModelSpec.model_validate({"width": 8, "modalities": {"image": 4, "text": 3}})


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Actors]:
    actors = Actors()
    monkeypatch.setattr(cluster, "ray", actors)
    yield actors
    actors.end_silent_calls()


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(LocalStore(tmp_path / "store"), tmp_path / "theirs", MODEL)


def test_a_cancelled_dataset_whose_encoder_never_answers_gives_its_place_back(
    actors: Actors, ground: Ground
) -> None:
    pools = EncoderPools(ground.store.uri, idle_seconds=120, start_seconds=1e9)
    entered, leased = [], []

    def prepare(request: PrepareRequest, progress: DatasetProgress) -> None:
        entered.append(request.dataset)
        with pools.lease(WORDS, 1, progress.check):
            leased.append(request.dataset)

    # The second of these waits for the first one, which waits for the actor.
    stuck = ["ds-1", "ds-2"]
    with ThreadPoolExecutor(2) as executor:
        server = PrepareServer(
            ground.store, prepare, executor, ProgressWriter(ground.store), datasets_at_once=2
        )
        ground.request(dataset="ds-0")
        steps_until(server, lambda: leased == ["ds-0"])
        actors.is_silent = lambda _: True
        for dataset in stuck:
            ground.request(dataset=dataset, owner=dataset)
        steps_until(server, lambda: actors.silent_calls and set(stuck) <= set(entered))
        for dataset in stuck:
            ground.store.delete(layout.preparation_request(dataset))
        try:
            steps_until(server, lambda: server.is_idle)
            actors.is_silent = lambda _: False
            ground.request(dataset="ds-3")
            steps_until(server, lambda: leased == ["ds-0", "ds-3"])
        finally:
            actors.end_silent_calls()


def test_a_lease_whose_actors_never_answer_ends_with_the_reason(
    actors: Actors, ground: Ground
) -> None:
    now = 0.0

    def check(note: str) -> None:
        nonlocal now
        assert note == "waits until encoder 'words' has started (num_cpus 1, num_gpus 0)"
        now += 100

    pools = EncoderPools(ground.store.uri, 120, start_seconds=600, clock=lambda: now)
    with pools.lease(WORDS, 2, lambda _: None):
        pass
    actors.is_silent = lambda _: True
    message = "'words' did not start within 600 s: does the cluster have a node for it"
    with pytest.raises(EncoderUnusable, match=message), pools.lease(WORDS, 2, check):
        pass
    assert now == 600


def test_a_pool_is_not_idle_while_a_lease_of_it_waits(actors: Actors, ground: Ground) -> None:
    now = 0.0

    def check(note: str) -> None:
        nonlocal now
        now += 100
        pools.end_idle()
        if now == 500:
            actors.is_silent = lambda _: False
            for call in actors.silent_calls:
                call.value = started
                call.is_done.set()

    pools = EncoderPools(ground.store.uri, idle_seconds=1, start_seconds=600, clock=lambda: now)
    with pools.lease(WORDS, 1, check) as first:
        started = actors.get_actor(first.actors[0]).call("start").value
    actors.is_silent = lambda _: True
    with pools.lease(WORDS, 1, check) as second:
        assert second.actors == first.actors
    now += 1
    pools.end_idle()
    assert actors.alive == {}


def test_actors_that_have_not_started_when_their_dataset_is_cancelled_are_ended(
    actors: Actors, ground: Ground
) -> None:
    class Cancelled(Exception):
        pass

    def check(note: str) -> None:
        raise Cancelled

    pools = EncoderPools(ground.store.uri, idle_seconds=120, start_seconds=600)
    with pools.lease(WORDS, 1, check) as first:
        pass
    actors.is_silent = lambda name: name not in first.actors
    with pytest.raises(Cancelled), pools.lease(WORDS, 2, check):
        pass
    assert set(actors.alive) == set(first.actors)
