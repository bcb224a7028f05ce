"""Limits of a replica, shared between owners."""

from ipaddress import ip_network

import pytest
from starlette.requests import Request

from tests.unit.serve.conftest import Replica
from workers.serve.api.app import create_api
from workers.serve.api.context import owner_of
from workers.serve.auth import Caller


def request_from(host: str | None, *forwarded: str) -> Request:
    client = None if host is None else (host, 1234)
    headers = [(b"x-forwarded-for", each.encode()) for each in forwarded]
    return Request({"type": "http", "client": client, "headers": headers})


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
def test_without_keys_an_owner_is_a_source_address(one: str, other: str, same: bool) -> None:
    owners = {owner_of(Caller("", None), request_from(host)) for host in (one, other)}
    assert (len(owners) == 1) is same


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
    owner = owner_of(Caller("", None), request_from(host, *forwarded), proxies)
    assert owner == f"address {counted}"
    assert owner_of(Caller("", None), request_from("10.0.3.1", *forwarded)) == "address 10.0.3.1"


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
