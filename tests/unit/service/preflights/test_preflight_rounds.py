"""From a pre-flight's request to its result, with faults of cluster and store."""

from sqlalchemy import select

from cmcl.contract.preflight import AskedShards
from service.database import tables
from service.database.queries import models, preflights
from service.database.queries.preflights import PreflightState
from service.jobs.preflights import PreflightReconciler
from service.launchers.port import LaunchState
from service.maintenance.gc import GarbageCollector
from tests.fakes.uploads import announce, complete, send
from tests.unit.service.preflights.conftest import PreflightScene

RUNNING, DONE, FAILED = PreflightState.RUNNING, PreflightState.DONE, PreflightState.FAILED


def test_it_requests_no_ranks_and_has_the_label_of_its_owner(scene: PreflightScene) -> None:
    asked = scene.post()
    scene.tick_to(asked, RUNNING)
    submission = scene.plane.launcher.submissions[f"{asked}-a1"]
    assert submission.ranks == 0
    about = {"preflight": asked, "model": "scenes", "owner": "default"}
    assert submission.labels == {f"cmcl/{name}": text for name, text in about.items()}


def test_the_worker_gets_a_command_and_a_spec(scene: PreflightScene) -> None:
    asked = scene.post()
    scene.tick_to(asked, RUNNING)
    command = scene.plane.launcher.commands[f"{asked}-a1"]
    assert command[:4] == ["python", "-m", "workers.inspect", "preflight"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    key = f"runs/{asked}/a1/asked.json"
    assert options == {
        "--store": scene.plane.store.uri,
        "--model": "scenes",
        "--version": "1",
        "--pair": "image,text",
        "--shards-in": key,
        "--into": f"runs/{asked}/a1/answer.json",
    }
    named = AskedShards.model_validate_json(scene.plane.store.read(key))
    assert named.shards[0].uri == scene.plane.shard("new")["uri"]
    assert named.allowed_prefixes == scene.plane.context.settings.allowed_prefixes


def test_a_stored_result_overrides_the_launcher(scene: PreflightScene) -> None:
    asked = scene.post()
    scene.tick_to(asked, RUNNING)
    scene.store_result(asked)
    scene.plane.launcher.end(f"{asked}-a1", LaunchState.FAILED, "exit code 3")
    assert scene.tick_to(asked, DONE).result is not None


def test_a_lost_attempt_is_repeated_once(scene: PreflightScene) -> None:
    asked = scene.post()
    for attempt in (1, 2):
        assert scene.tick_to(asked, RUNNING).attempt == attempt
        scene.plane.launcher.end(f"{asked}-a{attempt}", LaunchState.FAILED, "out of memory")
        scene.tick()
    found = scene.tick_to(asked, FAILED)
    assert "2 attempts gave no answer" in (found.message or "")
    assert "out of memory" in (found.message or "")


def test_a_late_answer_of_a_lost_attempt_is_ignored(scene: PreflightScene) -> None:
    asked = scene.post()
    scene.tick_to(asked, RUNNING)
    scene.plane.launcher.lose(f"{asked}-a1")
    scene.tick(2)
    scene.store_result(asked, attempt=1, error="of another time")
    scene.tick()
    assert scene.row(asked).state == RUNNING
    scene.store_result(asked, attempt=2)
    assert scene.tick_to(asked, DONE).attempt == 2


def test_a_preflight_with_an_error_is_not_repeated(scene: PreflightScene) -> None:
    asked = scene.post()
    scene.store_result(asked, error="model 'scenes' has no version 1")
    scene.tick(2)
    found = scene.row(asked)
    assert (found.state, found.attempt) == (FAILED, 1)
    assert found.message == "model 'scenes' has no version 1"


def test_an_outage_that_the_worker_met_is_tried_again(scene: PreflightScene) -> None:
    asked = scene.post()
    scene.store_result(asked, error="the store did not answer", retry_can_help=True)
    scene.tick_to(asked, RUNNING)
    scene.tick()
    assert scene.row(asked).attempt == 2
    scene.store_result(asked, attempt=2)
    scene.tick_to(asked, DONE)


def test_an_answer_that_cannot_be_read_fails(scene: PreflightScene) -> None:
    asked = scene.post()
    scene.tick_to(asked, RUNNING)
    scene.plane.store.put(f"runs/{asked}/a1/answer.json", b'{"outlook": {"version": "one"}}')
    assert "cannot be read" in (scene.tick_to(asked, FAILED).message or "")


def test_a_preflight_that_never_ends_is_stopped(scene: PreflightScene) -> None:
    asked = scene.post()
    scene.tick_to(asked, RUNNING)
    scene.plane.clock.advance(3601)
    found = scene.tick_to(asked, FAILED)
    assert "had no answer within 3600 s" in (found.message or "")
    assert scene.plane.launcher.stopped == [f"{asked}-a1"]


def test_a_cluster_that_keeps_refusing_ends_it(scene: PreflightScene) -> None:
    scene.plane.launcher.refuses = True
    asked = scene.post()
    scene.tick(2)
    assert scene.view(asked)["state"] == "queued"
    assert "waiting" in scene.view(asked)["message"]
    scene.plane.clock.advance(601)
    assert "the cluster refused it" in (scene.tick_to(asked, FAILED).message or "")


def test_an_outage_is_waited_for(scene: PreflightScene) -> None:
    scene.plane.launcher.is_down = True
    asked = scene.post()
    scene.tick(3)
    scene.plane.launcher.is_down = False
    scene.store_result(asked)
    assert scene.tick_to(asked, DONE).message is None


def test_a_model_has_one_preflight_at_a_time(scene: PreflightScene) -> None:
    first, second = scene.post(name="one"), scene.post(name="two")
    scene.tick(3)
    assert (scene.row(first).state, scene.row(second).state) == ("running", "queued")
    scene.store_result(first)
    scene.tick_to(second, RUNNING)


def test_trouble_with_one_delays_no_other(scene: PreflightScene) -> None:
    scene.plane.create_model("sounds")
    scene.plane.run_to_end(scene.plane.post_dataset(model="sounds"))
    broken, sound = scene.post(), scene.post("sounds", "other")
    scene.plane.store.broken = f"runs/{broken}"
    scene.store_result(sound)
    scene.tick_to(sound, DONE)
    assert scene.row(broken).state == PreflightState.QUEUED


def test_hanging_requests_of_one_owner_do_not_delay_others(scene: PreflightScene) -> None:
    spec, now = scene.plane.model().spec, scene.plane.clock()
    owners = ["greedy"] * 100 + ["lab"]
    with scene.plane.context.database.write() as connection:
        for number, owner in enumerate(owners):
            model = f"{owner}-{number}"
            models.create(connection, model, owner, spec, now)
            row = preflights.NewRow(f"pf-{number:012}", owner, model, 1, scene.body())
            preflights.create(connection, row, now)
    scene.tick()
    with scene.plane.context.database.read() as connection:
        seen = preflights.current(connection, 200, 200)
    running = [row.owner for row in seen if row.state == RUNNING]
    assert running == ["greedy"] * 8 + ["lab"]


def test_two_services_ask_once(scene: PreflightScene) -> None:
    asked = scene.post()
    other = PreflightReconciler(scene.plane.context)
    for _ in range(3):
        scene.tick()
        other.tick()
    scene.store_result(asked)
    seen = scene.row(asked)
    other.tick()
    assert scene.row(asked).revision == seen.revision + 1
    scene.tick()
    assert scene.row(asked).revision == seen.revision + 1
    assert list(scene.plane.launcher.commands)[-1] == f"{asked}-a1"


def test_its_end_is_reported_once(scene: PreflightScene) -> None:
    asked = scene.post()
    scene.store_result(asked)
    scene.tick(4)
    query = select(tables.events).where(tables.events.c.kind.like("preflight.%"))
    with scene.plane.context.database.read() as connection:
        rows = connection.execute(query).all()
    assert [(event.kind, event.data) for event in rows] == [
        ("preflight.done", {"preflight": asked, "refused": False})
    ]


def test_old_preflights_are_found_and_removed(scene: PreflightScene) -> None:
    asked, waiting = scene.post(name="one"), scene.post(name="two")
    scene.store_result(asked)
    scene.tick_to(asked, DONE)
    with scene.plane.context.database.write() as connection:
        (old,) = preflights.ended_before(connection, scene.plane.clock(), 10)
        assert old.id == asked
        preflights.forget(connection, old.id)
        assert [row.id for row in preflights.page(connection, "scenes", None, 10)] == [waiting]


def test_old_preflights_are_deleted_from_the_cluster(scene: PreflightScene) -> None:
    asked = scene.post()
    scene.store_result(asked)
    scene.tick_to(asked, DONE)
    launcher = scene.plane.launcher
    launcher.end(f"{asked}-a1", LaunchState.SUCCEEDED)
    scene.plane.clock.advance(91 * 24 * 3600)
    GarbageCollector(scene.plane.context).sweep()
    assert launcher.status(f"{asked}-a1").state == LaunchState.UNKNOWN


def test_an_upload_is_named_with_its_place(scene: PreflightScene) -> None:
    upload = announce(scene.plane, 3)
    send(scene.plane, upload, 1, b"abc")
    complete(scene.plane, upload)
    uri = f"upload:{upload}"
    body = scene.body(shards=[{"uri": uri}])
    asked = scene.plane.client.post("/v1/models/scenes/preflight", json=body).json()["id"]
    scene.tick_to(asked, RUNNING)
    document = scene.plane.store.read(f"runs/{asked}/a1/asked.json")
    (shard,) = AskedShards.model_validate_json(document).shards
    assert shard.uri == uri
    assert (shard.address or "").startswith(f"{scene.plane.store.uri}/uploads/{upload}/")
