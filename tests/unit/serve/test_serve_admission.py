"""Limits of a replica, shared between tenants."""

from ipaddress import ip_network
from itertools import repeat

import pytest
from starlette.requests import Request

from tests.unit.serve.conftest import Replica
from workers.serve.api.app import create_api
from workers.serve.api.context import tenant_of
from workers.serve.auth import Caller
from workers.serve.errors import Overloaded
from workers.serve.fairness import Quota


def take_all(quota: Quota, tenant: str, amount: int = 1) -> int:
    """Take as much as the quota gives, in pieces of `amount`; return the sum."""
    taken = 0
    for each in repeat(amount, 10_000):
        try:
            quota.take(tenant, each)
        except Overloaded:
            break
        taken += each
    return taken


def test_what_was_held_is_released_when_the_work_fails() -> None:
    quota = Quota(10, "rows")
    with pytest.raises(ZeroDivisionError), quota.held("a", 8):
        raise ZeroDivisionError
    assert quota.total == 0
    with quota.held("a", 8):
        assert quota.total == 8


def test_one_tenant_alone_may_use_four_fifths() -> None:
    quota = Quota(1000, "rows")
    assert take_all(quota, "a") == 800 == quota.share_of_one
    with pytest.raises(Overloaded, match="you hold 800 rows, and 1 more would be over your share"):
        quota.take("a", 1)


@pytest.mark.parametrize("hostile", [1, 2, 3, 8])
def test_tenants_that_take_all_they_can_leave_room_for_another(hostile: int) -> None:
    """Even if none of them releases anything."""
    quota = Quota(100_000_000, "bytes")
    for number in range(hostile):
        assert take_all(quota, f"hostile-{number}", 50_000) > 0 or number > 3
    with quota.held("modest", 100):
        assert quota.total <= 100_000_000


def test_tenants_that_hold_as_much_as_they_may_hold_the_same_in_the_end() -> None:
    quota = Quota(1000, "rows")
    held = {"a": take_all(quota, "a"), "b": take_all(quota, "b")}
    for _ in range(2000):
        for tenant in held:
            quota.release(tenant, 1)
            held[tenant] += take_all(quota, tenant) - 1
    assert abs(held["a"] - held["b"]) < 10
    assert sum(held.values()) < 900


def test_a_tenant_that_holds_nothing_gets_the_last_one() -> None:
    quota = Quota(4, "exports")
    assert take_all(quota, "greedy") == 3
    quota.take("modest", 1)
    with pytest.raises(Overloaded, match="exceed the limit of 4"):
        quota.take("third", 1)


def test_while_nothing_is_held_any_amount_is_taken_that_fits() -> None:
    quota = Quota(12, "items")
    with pytest.raises(Overloaded, match="exceed the limit of 12"):
        quota.take("a", 13)
    with quota.held("a", 12):
        pass
    quota.take("b", 1)
    with pytest.raises(Overloaded, match="over your share, which is 8"):
        quota.take("a", 11)


def request_from(host: str | None, *forwarded: str) -> Request:
    client = None if host is None else (host, 1234)
    headers = [(b"x-forwarded-for", each.encode()) for each in forwarded]
    return Request({"type": "http", "client": client, "headers": headers})


def test_all_keys_of_an_owner_are_one_tenant() -> None:
    keys = [Caller(f"key-{number}", "alice") for number in range(3)]
    assert len({tenant_of(each, request_from(None)) for each in keys}) == 1
    other = tenant_of(Caller("key-0", "bob"), request_from(None))
    assert other != tenant_of(keys[0], request_from(None))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("testclient", "testclient", True),
    ],
)
def test_without_keys_a_tenant_is_a_source_address(one: str, other: str, same: bool) -> None:
    tenants = {tenant_of(Caller("", None), request_from(host)) for host in (one, other)}
    assert (len(tenants) == 1) is same


@pytest.mark.parametrize(
    ("host", "forwarded", "counted"),
    [
        ("10.0.3.1", ["192.0.2.1"], "192.0.2.1"),
        ("10.0.3.1", ["198.51.100.9, 192.0.2.1"], "192.0.2.1"),
        ("10.0.3.1", ["198.51.100.9", "192.0.2.1"], "192.0.2.1"),
        ("10.0.3.1", ["2001:db8::1"], "2001:db8::/64"),
        ("10.0.3.1", [], "10.0.3.1"),
        ("10.0.4.1", ["192.0.2.1"], "10.0.4.1"),
        ("testclient", ["192.0.2.1"], "testclient"),
    ],
)
def test_without_keys_only_a_trusted_proxy_names_its_clients(
    host: str, forwarded: list[str], counted: str
) -> None:
    proxies = (ip_network("10.0.3.0/24"),)
    tenant = tenant_of(Caller("", None), request_from(host, *forwarded), proxies)
    assert tenant == f"address {counted}"
    assert tenant_of(Caller("", None), request_from("10.0.3.1", *forwarded)) == "address 10.0.3.1"


def test_the_setting_names_the_proxies(serving: Replica) -> None:
    """As uvicorn passes the address of the connection; httpx's transport says 127.0.0.1."""
    args = serving.args.model_copy(
        update={"trusted_proxies": (ip_network("127.0.0.0/8"),), "max_requests_in_flight": 2}
    )
    parts = serving.parts(args)
    serving.app = create_api(parts)
    parts.admission.requests.take("address 192.0.2.1", 1)
    assert serving.embed(headers={"x-forwarded-for": "192.0.2.1"}).status_code == 429
    assert serving.embed(headers={"x-forwarded-for": "192.0.2.2"}).status_code == 200
