"""From a question to its answer, whatever cluster and store do meanwhile."""

from sqlalchemy import select

from cmcl.contract.preflight import AskedShards
from service.database import tables
from service.database.queries import models, preflights
from service.database.queries.preflights import PreflightState
from service.jobs.preflights import PreflightReconciler
from service.launchers.port import LaunchState
from service.maintenance.gc import GarbageCollector
from tests.fakes.uploads import announce, complete, send
from tests.unit.service.preflights.conftest import Asking

RUNNING, DONE, FAILED = PreflightState.RUNNING, PreflightState.DONE, PreflightState.FAILED


def test_it_requests_no_ranks_and_has_the_label_of_its_owner(asking: Asking) -> None:
    asked = asking.post()
    asking.tick_to(asked, RUNNING)
    submission = asking.plane.launcher.submissions[f"{asked}-a1"]
    assert submission.ranks == 0
    about = {"preflight": asked, "model": "scenes", "owner": "default"}
    assert submission.labels == {f"cmcl/{name}": text for name, text in about.items()}


def test_the_worker_gets_a_command_and_a_spec(asking: Asking) -> None:
    asked = asking.post()
    asking.tick_to(asked, RUNNING)
    command = asking.plane.launcher.commands[f"{asked}-a1"]
    assert command[:4] == ["python", "-m", "workers.inspect", "preflight"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    key = f"runs/{asked}/a1/asked.json"
    assert options == {
        "--store": asking.plane.store.uri,
        "--model": "scenes",
        "--version": "1",
        "--pair": "image,text",
        "--shards-in": key,
        "--into": f"runs/{asked}/a1/answer.json",
    }
    told = AskedShards.model_validate_json(asking.plane.store.read(key))
    assert told.shards[0].uri == asking.plane.shard("new")["uri"]
    assert told.allowed_prefixes == asking.plane.context.settings.allowed_prefixes


def test_a_stored_result_overrides_the_launcher(asking: Asking) -> None:
    asked = asking.post()
    asking.tick_to(asked, RUNNING)
    asking.leave(asked)
    asking.plane.launcher.end(f"{asked}-a1", LaunchState.FAILED, "exit code 3")
    assert asking.tick_to(asked, DONE).result is not None


def test_a_lost_attempt_is_repeated_once(asking: Asking) -> None:
    asked = asking.post()
    for attempt in (1, 2):
        assert asking.tick_to(asked, RUNNING).attempt == attempt
        asking.plane.launcher.end(f"{asked}-a{attempt}", LaunchState.FAILED, "out of memory")
        asking.tick()
    found = asking.tick_to(asked, FAILED)
    assert "2 attempts gave no answer" in (found.message or "")
    assert "out of memory" in (found.message or "")


def test_a_late_answer_of_a_lost_attempt_is_ignored(asking: Asking) -> None:
    asked = asking.post()
    asking.tick_to(asked, RUNNING)
    asking.plane.launcher.lose(f"{asked}-a1")
    asking.tick(2)
    asking.leave(asked, attempt=1, error="of another time")
    asking.tick()
    assert asking.row(asked).state == RUNNING
    asking.leave(asked, attempt=2)
    assert asking.tick_to(asked, DONE).attempt == 2


def test_a_preflight_with_an_error_is_not_repeated(asking: Asking) -> None:
    asked = asking.post()
    asking.leave(asked, error="model 'scenes' has no version 1")
    asking.tick(2)
    found = asking.row(asked)
    assert (found.state, found.attempt) == (FAILED, 1)
    assert found.message == "model 'scenes' has no version 1"


def test_an_outage_that_the_worker_met_is_tried_again(asking: Asking) -> None:
    asked = asking.post()
    asking.leave(asked, error="the store did not answer", retry_can_help=True)
    asking.tick_to(asked, RUNNING)
    asking.tick()
    assert asking.row(asked).attempt == 2
    asking.leave(asked, attempt=2)
    asking.tick_to(asked, DONE)


def test_an_answer_that_cannot_be_read_fails(asking: Asking) -> None:
    asked = asking.post()
    asking.tick_to(asked, RUNNING)
    asking.plane.store.put(f"runs/{asked}/a1/answer.json", b'{"outlook": {"version": "one"}}')
    assert "cannot be read" in (asking.tick_to(asked, FAILED).message or "")


def test_a_preflight_that_never_ends_is_stopped(asking: Asking) -> None:
    asked = asking.post()
    asking.tick_to(asked, RUNNING)
    asking.plane.clock.advance(3601)
    found = asking.tick_to(asked, FAILED)
    assert "had no answer within 3600 s" in (found.message or "")
    assert asking.plane.launcher.stopped == [f"{asked}-a1"]


def test_a_cluster_that_keeps_refusing_ends_it(asking: Asking) -> None:
    asking.plane.launcher.refuses = True
    asked = asking.post()
    asking.tick(2)
    assert asking.view(asked)["state"] == "queued"
    assert "waiting" in asking.view(asked)["message"]
    asking.plane.clock.advance(601)
    assert "does not take it" in (asking.tick_to(asked, FAILED).message or "")


def test_an_outage_is_waited_for(asking: Asking) -> None:
    asking.plane.launcher.is_down = True
    asked = asking.post()
    asking.tick(3)
    asking.plane.launcher.is_down = False
    asking.leave(asked)
    assert asking.tick_to(asked, DONE).message is None


def test_a_model_has_one_preflight_at_a_time(asking: Asking) -> None:
    first, second = asking.post(name="one"), asking.post(name="two")
    asking.tick(3)
    assert (asking.row(first).state, asking.row(second).state) == ("running", "queued")
    asking.leave(first)
    asking.tick_to(second, RUNNING)


def test_trouble_with_one_delays_no_other(asking: Asking) -> None:
    asking.plane.create_model("sounds")
    asking.plane.run_to_end(asking.plane.post_dataset(model="sounds"))
    broken, sound = asking.post(), asking.post("sounds", "other")
    asking.plane.store.broken = f"runs/{broken}"
    asking.leave(sound)
    asking.tick_to(sound, DONE)
    assert asking.row(broken).state == PreflightState.QUEUED


def test_hanging_requests_of_one_owner_do_not_delay_others(asking: Asking) -> None:
    spec, now = asking.plane.model().spec, asking.plane.clock()
    owners = ["greedy"] * 100 + ["lab"]
    with asking.plane.context.database.write() as connection:
        for number, owner in enumerate(owners):
            model = f"{owner}-{number}"
            models.create(connection, model, owner, spec, now)
            row = preflights.NewRow(f"pf-{number:012}", owner, model, 1, asking.body())
            preflights.create(connection, row, now)
    asking.tick()
    with asking.plane.context.database.read() as connection:
        seen = preflights.current(connection, 200, 200)
    running = [row.owner for row in seen if row.state == RUNNING]
    assert running == ["greedy"] * 8 + ["lab"]


def test_two_services_ask_once(asking: Asking) -> None:
    asked = asking.post()
    other = PreflightReconciler(asking.plane.context)
    for _ in range(3):
        asking.tick()
        other.tick()
    asking.leave(asked)
    seen = asking.row(asked)
    other.tick()
    assert asking.row(asked).revision == seen.revision + 1
    asking.tick()
    assert asking.row(asked).revision == seen.revision + 1
    assert list(asking.plane.launcher.commands)[-1] == f"{asked}-a1"


def test_its_end_is_reported_once(asking: Asking) -> None:
    asked = asking.post()
    asking.leave(asked)
    asking.tick(4)
    query = select(tables.events).where(tables.events.c.kind.like("preflight.%"))
    with asking.plane.context.database.read() as connection:
        told = connection.execute(query).all()
    assert [(event.kind, event.data) for event in told] == [
        ("preflight.done", {"preflight": asked, "refused": False})
    ]


def test_old_preflights_are_found_and_removed(asking: Asking) -> None:
    asked, waiting = asking.post(name="one"), asking.post(name="two")
    asking.leave(asked)
    asking.tick_to(asked, DONE)
    with asking.plane.context.database.write() as connection:
        (old,) = preflights.ended_before(connection, asking.plane.clock(), 10)
        assert old.id == asked
        preflights.forget(connection, old.id)
        assert [row.id for row in preflights.page(connection, "scenes", None, 10)] == [waiting]


def test_old_preflights_are_deleted_from_the_cluster(asking: Asking) -> None:
    asked = asking.post()
    asking.leave(asked)
    asking.tick_to(asked, DONE)
    launcher = asking.plane.launcher
    launcher.end(f"{asked}-a1", LaunchState.SUCCEEDED)
    asking.plane.clock.advance(91 * 24 * 3600)
    GarbageCollector(asking.plane.context).sweep()
    assert launcher.status(f"{asked}-a1").state == LaunchState.UNKNOWN


def test_an_upload_is_named_with_its_place(asking: Asking) -> None:
    upload = announce(asking.plane, 3)
    send(asking.plane, upload, 1, b"abc")
    complete(asking.plane, upload)
    uri = f"upload:{upload}"
    body = asking.body(shards=[{"uri": uri}])
    asked = asking.plane.client.post("/v1/models/scenes/preflight", json=body).json()["id"]
    asking.tick_to(asked, RUNNING)
    told = asking.plane.store.read(f"runs/{asked}/a1/asked.json")
    (shard,) = AskedShards.model_validate_json(told).shards
    assert shard.uri == uri
    assert (shard.address or "").startswith(f"{asking.plane.store.uri}/uploads/{upload}/")
