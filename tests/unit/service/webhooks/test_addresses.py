"""Webhooks give no access to the service's network: the checked address is the connected one."""

import asyncio
import ipaddress
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from service.database.queries.deliveries import DeliveryRow
from service.database.queries.webhooks import WebhookRow
from service.events.webhook_delivery import (
    AddressRefused,
    Answer,
    Sender,
    check_url,
    is_public,
    is_under,
)
from tests.fakes.receiver import Receiver, receiving

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


# Every block of the IANA registries of special-purpose addresses (IPv4, IPv6) and of multicast that
# is not for the public internet, and the blocks that carry an IPv4 address of the inside.
NOT_PUBLIC = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
    *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    *("::/96", "::ffff:7f00:0/104", "::ffff:0:0:0/96", "64:ff9b:1::/48", "100::/64"),
    *("100:0:0:1::/64", "2001::/23", "2001:db8::/32", "2002:a00::/24", "3fff::/20"),
    *("5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
    *("64:ff9b::a00:0/104", "4000::/3", "8000::/1"),
)
# Where an IPv6 address contains an IPv4 address: the network, and the distance from the right.
CARRIERS = {
    "compatible": ("::", 0),
    "mapped": ("::ffff:0:0", 0),
    "translated": ("::ffff:0:0:0", 0),
    "NAT64": ("64:ff9b::", 0),
    "local NAT64": ("64:ff9b:1::", 0),
    "6to4": ("2002::", 80),
    "Teredo": ("2001::", 0),
}
_inside = st.sampled_from(
    [net for net in map(ipaddress.ip_network, NOT_PUBLIC) if net.version == 4]
)


@pytest.mark.parametrize("block", NOT_PUBLIC)
def test_no_address_of_a_special_purpose_block_is_public(block: str) -> None:
    network = ipaddress.ip_network(block)
    size = network.num_addresses
    for offset in {0, 1, size // 3, size // 2, size - 2, size - 1}:
        assert not is_public(network[offset]), network[offset]


@given(network=_inside, share=st.floats(0, 1), carrier=st.sampled_from(sorted(CARRIERS)))
def test_an_inner_ipv4_address_is_public_in_no_ipv6_form(
    network: ipaddress.IPv4Network, share: float, carrier: str
) -> None:
    inner = network[round(share * (network.num_addresses - 1))]
    base, shift = CARRIERS[carrier]
    address = ipaddress.IPv6Address(int(ipaddress.IPv6Address(base)) + (int(inner) << shift))
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "1.1.1.1", "192.0.1.1", "192.88.98.1", "223.255.255.254"),
        *("2606:4700::1111", "2a00:1450:4001::200e", "2001:200::1", "3ffe::1"),
        *("::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"),
    ],
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://example.com/hook", "https"),
        ("ftp://example.com", "it is not an address"),
        ("example.com/hook", "it is not an address"),
        ("https://", "it is not an address"),
        ("https:///hook", "it is not an address"),
        ("", "it is not an address"),
        ("https://exa mple.com", "it is not an address"),
        ("https://example.com:99999", "it is not an address"),
        ("https://example.com\n.evil.com", "it is not an address"),
        ("https://user:secret@example.com", "a user name, a password"),
        ("https://example.com/#part", "a # part"),
        ("https://127.0.0.1/hook", "not an address of the public internet"),
        ("https://[::1]/hook", "not an address of the public internet"),
        ("https://example.com/" + "x" * 1024, "characters"),
        ("javascript:alert(1)", "it is not an address"),
        ("file:///etc/passwd", "it is not an address"),
    ],
)
def test_a_bad_address_is_rejected_with_a_message(url: str, words: str) -> None:
    with pytest.raises(AddressRefused, match=words) as refused:
        check_url(url, ())
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "is_inside"),
    [
        ("http://hooks.internal:9000/cmcl", True),
        ("http://hooks.internal:9000/cmcl/one?x=1", True),
        ("http://HOOKS.internal:9000/cmcl/", True),
        ("http://hooks.internal:9000/cmclone", False),
        ("http://hooks.internal:9000/cmcl/../admin", False),
        ("http://hooks.internal:9000/cmcl/%2e%2e/admin", False),
        ("http://hooks.internal:9000/cmcl/..%2fadmin", False),
        ("http://hooks.internal:9000/cmcl\\..\\admin", False),
        ("http://hooks.internal:90001/cmcl", False),
        ("http://hooks.internal/cmcl", False),
        ("https://hooks.internal:9000/cmcl", False),
        ("http://hooks.internal.evil.com:9000/cmcl", False),
        ("http://hooks.internal:9000.evil.com/cmcl", False),
    ],
)
def test_a_prefix_ends_where_a_step_ends(url: str, is_inside: bool) -> None:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        assert not is_inside
        return
    assert is_under(parsed, httpx.URL("http://hooks.internal:9000/cmcl")) == is_inside


def test_with_prefixes_nothing_else_is_permitted() -> None:
    with pytest.raises(AddressRefused, match="permitted are addresses under: http://127"):
        check_url("https://example.com", ("http://127.0.0.1:9000",))


class Names:
    """A name server with prepared answers, one after another."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        return self.answers.pop(0)


def _send(sender: Sender, url: str) -> Answer:
    webhook = WebhookRow("wh-1", "default", url, "whsec_MDEyMzQ1Njc4OQ==", (), None, NOW)
    delivery = DeliveryRow(1, "dl-1", "wh-1", {}, 0, NOW, None, None, NOW, None, None)
    return asyncio.run(sender.send(webhook, delivery, NOW))


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["::1"]]
)
def test_a_name_that_leads_inside_is_not_connected_to(
    receiver: Receiver, addresses: list[str]
) -> None:
    answer = _send(Sender((), resolve=Names(addresses)), f"https://example.com:{receiver.port}/")
    assert answer.error == (
        "the address is not permitted: its host does not lead to the public internet"
    )
    assert receiver.received == []


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost"])
def test_other_spellings_of_loopback_are_recognized(receiver: Receiver, host: str) -> None:
    """By the system's resolver, which a connection would use."""
    answer = _send(Sender(()), f"https://{host}:{receiver.port}/")
    assert answer.status is None
    assert receiver.received == []


def test_what_was_checked_is_what_is_connected_to(receiver: Receiver) -> None:
    """The name is resolved once, so a second, different response cannot redirect the connection."""
    names = Names(["127.0.0.1"], ["203.0.113.1"])
    url = f"http://hooks.example:{receiver.port}/x"
    answer = _send(Sender((url,), resolve=names), url)
    assert answer.status == 204
    assert names.answers == [["203.0.113.1"]]
    assert receiver.received[0].headers["host"] == f"hooks.example:{receiver.port}"
    assert receiver.received[0].path == "/x"


@pytest.mark.parametrize("name", ["hooks.example", "other.example"])
def test_the_certificate_must_be_that_of_the_name(tmp_path: Path, name: str) -> None:
    """The name is verified although the connection is made to a numeric address."""
    certificate, tls = _certificate(tmp_path, "hooks.example")
    with receiving(tls) as receiver:
        url = f"https://{name}:{receiver.port}/"
        trusting = ssl.create_default_context(cafile=str(certificate))
        sender = Sender((url,), resolve=Names(["127.0.0.1"]), tls=trusting)
        answer = _send(sender, url)
    assert (answer.status == 204) == (name == "hooks.example")
    assert answer.error == (
        None if name == "hooks.example" else "no trusted connection could be made"
    )


def test_an_unknown_certificate_is_refused(tmp_path: Path) -> None:
    _, tls = _certificate(tmp_path, "hooks.example")
    with receiving(tls) as receiver:
        url = f"https://hooks.example:{receiver.port}/"
        answer = _send(Sender((url,), resolve=Names(["127.0.0.1"])), url)
        assert receiver.received == []
    assert answer.error == "no trusted connection could be made"


def test_a_name_without_addresses_is_a_failure() -> None:
    assert _send(Sender((), resolve=Names([])), "https://x.example").error == (
        "its host has no address"
    )
    for host in ("no-such-host.invalid", f"{'x' * 64}.example", "a..example"):
        answer = _send(Sender(()), f"https://{host}/")
        assert answer.error == "its host name was not found"


def _certificate(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate, and a server context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = datetime.now(UTC) - timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=9))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path, private = folder / "certificate.pem", folder / "key.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(path, private)
    return path, tls
