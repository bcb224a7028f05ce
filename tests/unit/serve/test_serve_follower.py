"""The follower swaps to verified versions only."""

from collections.abc import Callable

import pytest

from cmcl.contract.model import ModelSpec
from cmcl.contract.version import VersionManifest
from cmcl.storage import layout
from cmcl.storage.versions import read_version, write_blob
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.versions import random_heads, store_version, stored_key
from tests.unit.serve.conftest import MODEL, SPEC, Replica
from workers.model.artifact import save_heads, save_selftest
from workers.serve.settings import ServeSettings

LATER = 60.0


def rewrite(replica: Replica, version: int, name: str, data: bytes) -> None:
    """Replace a file of a version, and its digest in the manifest."""
    manifest = read_version(replica.store, MODEL, version)
    files = {**manifest.files, name: write_blob(replica.store, data)}
    put_manifest(replica, version, manifest.model_copy(update={"files": files}))


def put_manifest(replica: Replica, version: int, manifest: VersionManifest) -> None:
    key = layout.version_manifest(MODEL, version)
    replica.store.put(key, manifest.model_dump_json().encode())


def key(replica: Replica, name: str) -> str:
    return stored_key(replica.store, MODEL, 2, name)


def flip_a_bit(replica: Replica) -> None:
    heads = key(replica, layout.HEADS)
    data = bytearray(replica.store.read(heads))
    data[-1] ^= 1
    replica.store.put(heads, bytes(data))


def truncate_heads(replica: Replica) -> None:
    data = replica.store.read(key(replica, layout.HEADS))
    rewrite(replica, 2, layout.HEADS, data[:-7])


def lose_the_manifest(replica: Replica) -> None:
    replica.store.delete(key(replica, layout.MANIFEST))


def damage_the_manifest(replica: Replica) -> None:
    replica.store.put(key(replica, layout.MANIFEST), b'{"model": "scenes"')


def take_the_manifest_of_another(replica: Replica) -> None:
    put_manifest(replica, 2, read_version(replica.store, MODEL, 1))


def lose_the_heads(replica: Replica) -> None:
    replica.store.delete(key(replica, layout.HEADS))


def forget_the_selftest(replica: Replica) -> None:
    manifest = read_version(replica.store, MODEL, 2)
    files = {name: each for name, each in manifest.files.items() if name != layout.SELFTEST}
    put_manifest(replica, 2, manifest.model_copy(update={"files": files}))


def promise_other_embeddings(replica: Replica) -> None:
    rewrite(replica, 2, layout.SELFTEST, save_selftest(random_heads(SPEC, seed=99), SPEC))


def promise_other_widths(replica: Replica) -> None:
    spec = ModelSpec.model_validate({**SPEC.model_dump(), "modalities": {"image": 7, "text": 9}})
    rewrite(replica, 2, layout.SELFTEST, save_selftest(random_heads(spec, seed=2), spec))


def not_a_number(replica: Replica) -> None:
    heads = random_heads(SPEC, seed=2)
    heads.weights["image"][0, 0] = float("nan")
    rewrite(replica, 2, layout.HEADS, save_heads(heads)[0])


def other_shape(replica: Replica) -> None:
    spec = SPEC.model_copy(update={"width": 7})
    rewrite(replica, 2, layout.HEADS, save_heads(random_heads(spec, seed=2))[0])


DAMAGES = [
    flip_a_bit,
    truncate_heads,
    lose_the_manifest,
    damage_the_manifest,
    take_the_manifest_of_another,
    lose_the_heads,
    forget_the_selftest,
    promise_other_embeddings,
    promise_other_widths,
    not_a_number,
    other_shape,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_version_is_rejected_and_the_old_one_keeps_serving(
    serving: Replica, damage: Callable[[Replica], None], caplog: pytest.LogCaptureFixture
) -> None:
    store_version(serving.store, MODEL, 2, SPEC, random_heads(SPEC, seed=2))
    damage(serving)
    serving.point(generation=2, version=2)
    serving.poll()
    assert serving.embed().headers["x-model-version"] == "1"
    assert serving.metrics.refusals == [MODEL]
    assert "scenes@2 (generation 2) is refused" in caplog.text


def test_a_refused_generation_is_tried_ever_more_rarely(serving: Replica) -> None:
    serving.publish(version=2)
    flip_a_bit(serving)
    for _ in range(1000):
        serving.poll()
        serving.clock.now += 0.1
    assert 8 <= len(serving.metrics.refusals) <= 14


def test_the_same_version_again_loads_nothing(serving: Replica) -> None:
    before = serving.live.get(MODEL)
    serving.store.calls.clear()
    serving.point(generation=9, version=1)
    serving.poll()
    after = serving.live.get(MODEL)
    assert before is not None
    assert after is not None
    assert (after.generation, after.version) == (9, before.version)
    assert not any("versions/" in call for call in serving.store.calls)


def test_a_look_without_news_reads_one_small_object(serving: Replica) -> None:
    serving.store.calls.clear()
    serving.poll()
    assert sorted(serving.store.calls) == ["models/", "models/scenes/live.json"]


def test_a_model_without_a_live_version_is_503(replica: Replica) -> None:
    store_version(replica.store, MODEL, 1, SPEC, random_heads(SPEC, seed=1))
    replica.poll()
    response = replica.embed()
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["message"] == "model 'scenes' has no live version yet"


def test_folders_with_odd_names_are_no_models(serving: Replica) -> None:
    serving.store.put("models/Not A Model/live.json", b"{}")
    serving.poll()
    assert list(serving.live.all()) == [MODEL]


def test_an_unavailable_store_makes_one_line_of_log(
    serving: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    serving.store.broken = "live.json"
    for _ in range(50):
        serving.poll()
    assert caplog.text.count("cannot be read") == 1


class BuggyStore(FlakyStore):
    """Fails with an unexpected error."""

    def folders(self, prefix: str) -> list[str]:
        if self.broken is not None:
            raise ZeroDivisionError
        return super().folders(prefix)


def test_the_thread_outlives_a_bug(store: FlakyStore) -> None:
    replica = Replica(BuggyStore(store), ServeSettings(store=store.uri))
    replica.store.broken = "anything"
    replica.follow()
    assert not replica.live.readiness.wait(0.1)
    replica.store.broken = None
    assert replica.live.readiness.wait(5)
    replica.following.end()


@pytest.mark.parametrize("damaged", [layout.HEADS, layout.MANIFEST, layout.SELFTEST])
def test_a_replica_that_starts_with_damage_serves_the_rest(replica: Replica, damaged: str) -> None:
    replica.publish(version=1)
    replica.publish(version=1, model="other")
    replica.store.put(stored_key(replica.store, MODEL, 1, damaged), b"rubbish")
    replica.poll()
    assert replica.live.readiness.ready
    assert replica.embed(model="other").status_code == 200
    assert (replica.embed().status_code, replica.embed(model="scenes@1").status_code) == (503, 500)
    refusal = replica.live.refusal(MODEL)
    assert refusal is not None
    assert refusal.kind == "damaged"


def test_a_replica_that_starts_with_a_corrupt_pointer_serves_the_rest(replica: Replica) -> None:
    replica.publish(version=1, model="other")
    replica.publish(version=1)
    replica.store.put(layout.live_pointer(MODEL), b'{"generation": -1}')
    replica.poll()
    assert replica.live.readiness.ready
    assert replica.embed(model="other").status_code == 200
    assert replica.embed().status_code == 503
