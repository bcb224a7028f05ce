"""Models of another owner do not exist for any request."""

import asyncio

import pytest

from cmcl.storage import layout
from tests.fakes.versions import random_heads, store_version, stored_key
from tests.unit.serve.conftest import MODEL, SPEC, Replica
from workers.serve.auth import Caller
from workers.serve.errors import ApiError, NotFound, NotReady
from workers.serve.versions.live import VersionLookup, parse_reference
from workers.serve.versions.loading import ServedVersion

OWNER = Caller("key-1", "acme")
STRANGER = Caller("key-2", "globex")
OPERATOR = Caller("operator", None)


def find(replica: Replica, model: str, caller: Caller, min_version: int = 0) -> ServedVersion:
    lookup = VersionLookup(replica.live, replica.cache, wait_seconds=0.01)
    return asyncio.run(lookup.find(parse_reference(model), min_version, caller))


def refusal(replica: Replica, model: str, caller: Caller, min_version: int = 0) -> ApiError:
    with pytest.raises(ApiError) as caught:
        find(replica, model, caller, min_version)
    return caught.value


@pytest.fixture
def owned(serving: Replica) -> Replica:
    serving.publish(version=2)
    serving.point(generation=2, version=2, revision=1, owner="acme", retired=[7])
    serving.poll()
    return serving


@pytest.mark.parametrize("model", [MODEL, "scenes@1", "scenes@2"])
@pytest.mark.parametrize("caller", [OWNER, OPERATOR])
def test_the_owner_and_the_operator_find_a_model(
    owned: Replica, model: str, caller: Caller
) -> None:
    assert find(owned, model, caller).model == MODEL


@pytest.mark.parametrize("version", ["", "@1", "@2", "@7", "@9"])
@pytest.mark.parametrize("min_version", [0, 1])
def test_an_unauthenticated_client_gets_the_message_for_an_unknown_model(
    owned: Replica, version: str, min_version: int
) -> None:
    hidden = refusal(owned, f"scenes{version}", STRANGER, min_version)
    unknown = refusal(owned, f"absent{version}", STRANGER, min_version)
    assert type(hidden) is type(unknown) is NotFound
    assert str(hidden).replace("scenes", "absent") == str(unknown)
    assert (hidden.code, hidden.param) == (unknown.code, unknown.param)


def test_a_model_without_an_owner_is_everybodys(serving: Replica) -> None:
    assert find(serving, MODEL, STRANGER).number == 1


def test_a_model_whose_owner_is_not_known_yet_is_the_operators(replica: Replica) -> None:
    store_version(replica.store, MODEL, 1, SPEC, random_heads(SPEC, seed=1))
    replica.poll()
    assert isinstance(refusal(replica, MODEL, STRANGER), NotFound)
    assert isinstance(refusal(replica, MODEL, OPERATOR), NotReady)
    assert isinstance(refusal(replica, "scenes@1", OPERATOR), NotReady)


def test_a_new_owner_holds_although_the_version_is_damaged(serving: Replica) -> None:
    serving.publish(version=2)
    serving.store.delete(stored_key(serving.store, MODEL, 2, layout.HEADS))
    serving.point(generation=2, version=2, owner="acme")
    serving.poll()
    assert find(serving, MODEL, OWNER).number == 1
    assert isinstance(refusal(serving, MODEL, STRANGER), NotFound)


def test_an_exact_version_answers_while_the_live_one_is_damaged(replica: Replica) -> None:
    replica.publish(version=1)
    replica.publish(version=2)
    replica.store.delete(stored_key(replica.store, MODEL, 2, layout.HEADS))
    replica.poll()
    assert isinstance(refusal(replica, MODEL, OPERATOR), NotReady)
    assert find(replica, "scenes@1", OPERATOR).number == 1


def test_no_model_is_unknown_before_the_first_poll(replica: Replica) -> None:
    assert isinstance(refusal(replica, MODEL, STRANGER), NotReady)
