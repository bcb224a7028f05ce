"""A replica whose store is unavailable at its start."""

from tests.unit.serve.conftest import Replica
from workers.serve.versions.live import StoreReadiness, wait_until_ready

ALREADY = 0.001


def test_the_cause_of_unreadiness_is_reported_and_cleared(replica: Replica) -> None:
    replica.publish(version=1)
    replica.store.broken = "models/"
    replica.poll()
    response = replica.get("/readyz")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["error"]["message"] == (
        "this replica has not seen the store yet: 'models/': the connection is broken (on purpose)"
    )
    assert replica.embed().status_code == 503
    replica.store.broken = None
    replica.poll()
    assert replica.get("/readyz").status_code == 200
    assert replica.embed().status_code == 200


def test_a_store_that_fails_later_makes_no_replica_unready(serving: Replica) -> None:
    serving.store.broken = ""
    serving.poll()
    assert serving.get("/readyz").status_code == 200


def test_a_lone_replica_starts_without_its_store() -> None:
    readiness = StoreReadiness()
    wait_until_ready(readiness, ALREADY, lambda: False)
    assert not readiness.ready


def test_while_others_answer_a_replica_waits_for_its_store() -> None:
    readiness = StoreReadiness()
    looks: list[bool] = []

    def others_answer() -> bool:
        looks.append(readiness.ready)
        if len(looks) == 3:
            readiness.listed([])
        return True

    wait_until_ready(readiness, ALREADY, others_answer)
    assert looks == [False] * 3
    assert readiness.ready
