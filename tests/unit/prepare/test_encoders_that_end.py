"""Encoders that end while datasets are encoded: new ones are leased, and an item that ends each is found."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from cmcl.contract.model import ModelSpec
from cmcl.storage.local import LocalStore
from cmcl.storage.object_store import ObjectStore
from tests.fakes.encoders import DEADLY, write_weights
from tests.fakes.preparation import Ground, InlineCluster
from tests.fakes.ray_actors import Actors
from workers.prepare import cluster, dataset
from workers.prepare.cluster import Check, EncoderPools
from workers.prepare.dataset import PreparationFailed
from workers.prepare.encoding import LeasedEncoder
from workers.prepare.tasks import end_children

MODEL = ModelSpec.model_validate(
    {
        "width": 8,
        "modalities": {"image": 2, "text": {"width": 3, "encoder": "words"}},
        "training": {"batch_size": 8},
    }
)
WORDS = EncoderSpec(
    name="words",
    kind="tests.fakes.encoders:DeadlyEncoder",
    takes="text",
    width=3,
    max_batch=16,
    # A unit then has 64 rows.
    max_item_bytes=256 << 20,
)
ROWS = 160  # Three units.


class PooledCluster(InlineCluster):
    """Leases encoders from pools."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self.pools = EncoderPools(store.uri, idle_seconds=120, start_seconds=600)

    @contextmanager
    def lease(self, spec: EncoderSpec, units: int, check: Check) -> Iterator[LeasedEncoder]:
        """See Cluster."""
        with self.pools.lease(spec, units, check) as leased:
            yield leased

    def identity_of(self, spec: EncoderSpec) -> EncoderIdentity | None:
        """See Cluster."""
        return self.pools.identity_of(spec)


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Actors:
    actors = Actors()
    monkeypatch.setattr(cluster, "ray", actors)
    monkeypatch.setattr(dataset, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(cluster, "gettempdir", lambda: str(tmp_path))
    return actors


@pytest.fixture
def ground(tmp_path: Path, actors: Actors) -> Ground:
    ground = Ground(LocalStore(tmp_path / "store"), tmp_path / "theirs", MODEL)
    ground.cluster = PooledCluster(ground.store)
    write_rows(ground, "good.jsonl", "a caption")
    return ground


@pytest.fixture(scope="module", autouse=True)
def closed_children() -> Iterator[None]:
    yield
    end_children()


def write_rows(ground: Ground, name: str, last: str) -> None:
    """Rows with different texts. `last`: text of the last one."""
    rows: list[dict[str, Any]] = [
        {"id": str(row), "image": [1, row], "text": f"caption {row}"} for row in range(ROWS)
    ]
    rows[-1]["text"] = last
    (ground.folder / name).write_text("\n".join(map(json.dumps, rows)))


def end_all(actors: Actors) -> None:
    """End all actors permanently."""
    for actor in list(actors.alive.values()):
        actors.kill(actor)


def prepared_rows(ground: Ground, name: str, **fields: Any) -> int:
    """Prepare a file as a dataset, and return its rows."""
    request = ground.request(name, **{"encoders": {"text": WORDS}, **fields})
    return ground.prepare(request).rows


def test_a_dataset_whose_encoders_end_again_and_again_leases_new_ones_and_ends(
    ground: Ground, actors: Actors
) -> None:
    """It is not its own items that end them, so the number of times is not limited."""
    units = []

    def before(unit: Any) -> None:
        units.append(unit)
        assert len(units) < 50, "no encoder was leased again"
        if len(units) <= 10:
            end_all(actors)

    ground.cluster.before = before
    assert prepared_rows(ground, "good.jsonl") == ROWS
    assert len(units) == 10 + 3
    assert len(actors.alive) == 1


def test_an_item_that_ends_every_encoder_fails_its_dataset_and_no_other(
    ground: Ground, actors: Actors, tmp_path: Path
) -> None:
    write_rows(ground, "deadly.jsonl", DEADLY)
    message = (
        r"encoder 'words' ended or failed 3 times while it encoded batch 1 of text of rows 128 to 159 of .*"
        r"deadly.jsonl of dataset ds-a\. An item may need more memory"
    )
    tries = []

    def before(unit: Any) -> None:
        tries.append(unit)
        assert len(tries) < 50, "its unit was tried without end"
        if len(tries) != 2:
            return
        # While the dataset of another owner is in work.
        for number in range(2):
            with pytest.raises(PreparationFailed, match=message) as caught:
                prepared_rows(ground, "deadly.jsonl", dataset="ds-a", owner="ann", request=number)
            assert caught.value.reason == "encoder_unavailable"
            assert actors.ends == 3 * (number + 1)

    ground.cluster.before = before
    assert prepared_rows(ground, "good.jsonl", dataset="ds-b", owner="bob") == ROWS
    assert prepared_rows(ground, "good.jsonl", dataset="ds-c", owner="eve") == ROWS
    assert actors.ends == 6
    assert list(tmp_path.glob("cmcl-*")) == []


def test_a_lease_has_no_actor_that_has_ended(ground: Ground, actors: Actors) -> None:
    words = WORDS.model_copy(update={"actors": 2})
    with ground.cluster.lease(words, 2, lambda _: None) as first:
        actors.kill(actors.get_actor(first.actors[0]))
    with ground.cluster.lease(words, 2, lambda _: None) as second:
        assert len(second.actors) == 2
        assert set(second.actors) == set(actors.alive)
        assert first.actors[1] in second.actors


def test_an_encoder_that_is_another_one_when_it_is_leased_again_is_refused(
    ground: Ground, actors: Actors, tmp_path: Path
) -> None:
    folder = tmp_path / "letters"
    write_weights(folder, seed=0, width=3)
    kind = "tests.fakes.encoders:WeightsEncoder"
    changes = {"kind": kind, "model": str(folder)}
    letters = WORDS.model_copy(update=changes)
    units = []

    def before(unit: Any) -> None:
        units.append(unit)
        assert len(units) < 50, "no encoder was leased again"
        if len(units) == 2:
            write_weights(folder, seed=1, width=3)
            end_all(actors)

    ground.cluster.before = before
    with pytest.raises(PreparationFailed, match="'words' is not the one that computed") as caught:
        prepared_rows(ground, "good.jsonl", encoders={"text": letters})
    assert caught.value.reason == "encoder_mismatch"
