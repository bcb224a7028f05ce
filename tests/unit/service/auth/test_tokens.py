"""Bearer tokens of an issuer: real keys and a real server, and tokens that must be rejected."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cmcl.contract.api.access import Scope
from service.auth.oidc import OidcTokens
from service.auth.rate_limiter import FAILURES_PER_MINUTE
from service.core.errors import Forbidden, IssuerUnavailable, Unauthorized
from service.core.principal import Principal
from tests.fakes.control_plane import ControlPlane
from tests.fakes.issuer import AUDIENCE, FakeIssuer, rsa_key
from tests.unit.service.auth.key_client import KeyClient


@pytest.fixture(scope="module")
def issuer() -> Iterator[FakeIssuer]:
    with FakeIssuer() as issuer:
        issuer.keys["second"] = ec.generate_private_key(ec.SECP256R1())
        issuer.publish()
        yield issuer


@pytest.fixture(scope="module")
def tokens(issuer: FakeIssuer) -> OidcTokens:
    return reader(issuer)


def reader(issuer: FakeIssuer) -> OidcTokens:
    return OidcTokens(issuer.url, AUDIENCE, "cmcl_owner")


def part(document: dict[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


@pytest.mark.parametrize("key", ["first", "second"])
def test_a_token_authenticates_its_owner_with_its_scopes(
    issuer: FakeIssuer, tokens: OidcTokens, key: str
) -> None:
    expected = Principal("oidc:somebody", "lab", frozenset({Scope.READ, Scope.WRITE}))
    assert tokens.read(issuer.token(key)) == expected


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({"scope": None, "scp": ["cmcl:train", 7, "cmcl:unknown"]}, {Scope.TRAIN}),
        ({"scope": "cmcl:read", "scp": "cmcl:admin"}, {Scope.READ, Scope.ADMIN}),
        ({"scope": "read write cmcl:"}, set()),
        ({"scope": 5, "scp": {"cmcl:read": 1}}, set()),
        ({"scope": None}, set()),
    ],
)
def test_scopes_are_those_with_our_prefix(
    issuer: FakeIssuer, tokens: OidcTokens, claims: dict[str, Any], scopes: set[Scope]
) -> None:
    assert tokens.read(issuer.token(**claims)).scopes == scopes


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "another-service"},
        {"aud": None},
        {"iss": "https://issuer.example.org"},
        {"iss": None},
        {"sub": None},
        {"exp": None},
        {"exp": int(time.time()) - 3600},
        {"nbf": int(time.time()) + 3600},
        {"exp": "tomorrow"},
    ],
    # Without the times, which differ between the processes that collect tests.
    ids="-".join,
)
def test_a_token_that_is_not_for_us_or_not_for_now_is_refused(
    issuer: FakeIssuer, tokens: OidcTokens, claims: dict[str, Any]
) -> None:
    with pytest.raises(Unauthorized):
        tokens.read(issuer.token(**claims))


@pytest.mark.parametrize(("seconds", "is_accepted"), [(30, True), (90, False)])
def test_clocks_may_differ_by_a_minute(
    issuer: FakeIssuer, tokens: OidcTokens, seconds: int, is_accepted: bool
) -> None:
    now = int(time.time())
    for token in (issuer.token(exp=now - seconds), issuer.token(nbf=now + seconds)):
        if is_accepted:
            assert tokens.read(token).owner == "lab"
        else:
            with pytest.raises(Unauthorized):
                tokens.read(token)


def test_a_token_without_a_signature_is_refused(issuer: FakeIssuer, tokens: OidcTokens) -> None:
    claims = part(issuer.claims())
    header, payload, signature = issuer.token().split(".")
    for token in (
        *(f"{part({'alg': name, 'kid': 'first'})}.{claims}." for name in ("none", "None", "")),
        *(f"{header}.{payload}.", f"{header}.{claims}.{signature[:-4]}AAAA", "a.b.c", ".."),
        f"{part({'kid': 'first'})}.{claims}.{signature}",
    ):
        with pytest.raises(Unauthorized):
            tokens.read(token)


def test_the_public_key_is_no_shared_secret(issuer: FakeIssuer, tokens: OidcTokens) -> None:
    key = issuer.keys["first"].public_key()
    encodings = [
        key.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
        for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER)
    ]
    for secret in encodings:
        for name in ("HS256", "RS256"):
            signed = f"{part({'alg': name, 'kid': 'first'})}.{part(issuer.claims())}"
            digest = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
            signature = base64.urlsafe_b64encode(digest).decode().rstrip("=")
            with pytest.raises(Unauthorized):
                tokens.read(f"{signed}.{signature}")


def test_a_key_that_the_token_brings_along_is_not_used(
    issuer: FakeIssuer, tokens: OidcTokens
) -> None:
    stranger = rsa_key()
    own = dict(jwt.algorithms.RSAAlgorithm.to_jwk(stranger.public_key(), as_dict=True))
    for header in ({"kid": "first"}, {"kid": "first", "jwk": own}, {"jku": issuer.url}, {}):
        token = jwt.encode(issuer.claims(), stranger, "RS256", headers=header)
        with pytest.raises(Unauthorized):
            tokens.read(token)


@pytest.mark.parametrize(
    "owner", [None, "", 7, ["lab"], "x" * 49, "a\nb", "lab\n", "*", "Lab", "läb", "a b", "-lab"]
)
def test_a_token_without_an_owner_is_forbidden(
    issuer: FakeIssuer, tokens: OidcTokens, owner: object
) -> None:
    with pytest.raises(Forbidden, match="'cmcl_owner'"):
        tokens.read(issuer.token(cmcl_owner=owner))


def test_a_subject_cannot_pass_for_another_actor(issuer: FakeIssuer, tokens: OidcTokens) -> None:
    names = {tokens.read(issuer.token(sub=name)).name for name in ("operator", "a\nb", "x" * 300)}
    assert names == {"oidc:operator", "oidc:a?b", f"oidc:{'x' * 100}"}


def test_the_keys_are_fetched_once_for_many_tokens(issuer: FakeIssuer) -> None:
    tokens = reader(issuer)
    issuer.asked.clear()
    for _ in range(5):
        tokens.read(issuer.token())
    for _ in range(5):
        unknown = jwt.encode(issuer.claims(), rsa_key_of(issuer), "RS256", headers={"kid": "x"})
        with pytest.raises(Unauthorized):
            tokens.read(unknown)
    assert issuer.asked == ["/.well-known/openid-configuration", "/keys"]


def rsa_key_of(issuer: FakeIssuer) -> rsa.RSAPrivateKey:
    key = issuer.keys["first"]
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def test_an_unavailable_issuer_does_not_invalidate_a_token() -> None:
    with FakeIssuer() as issuer:
        token = issuer.token()
    tokens = reader(issuer)
    for _ in range(2):
        with pytest.raises(IssuerUnavailable, match="did not respond"):
            tokens.read(token)


def test_an_unavailable_issuer_is_not_retried_constantly() -> None:
    with FakeIssuer() as issuer:
        tokens, documents = reader(issuer), dict(issuer.documents)
        issuer.documents.clear()
        for _ in range(5):
            with pytest.raises(IssuerUnavailable):
                tokens.read(issuer.token())
        assert len(issuer.asked) == 1
        issuer.documents.update(documents)
        assert reader(issuer).read(issuer.token()).owner == "lab"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/.well-known/openid-configuration", b"not json"),
        ("/.well-known/openid-configuration", b"[]"),
        ("/.well-known/openid-configuration", b'{"issuer": "https://else.example.org"}'),
        ("/.well-known/openid-configuration", b'{"issuer": "x", "jwks_uri": "http://127.0.0.1"}'),
        ("/keys", b"not json"),
        ("/keys", b'{"keys": []}'),
    ],
)
def test_an_issuer_that_answers_nonsense_counts_as_down(path: str, body: bytes) -> None:
    with FakeIssuer() as issuer:
        issuer.documents[path] = body
        with pytest.raises(IssuerUnavailable):
            reader(issuer).read(issuer.token())


@pytest.mark.parametrize("address", ["ftp://127.0.0.1/keys", "file:///etc/passwd", "keys", ""])
def test_keys_are_fetched_over_http_alone(address: str) -> None:
    with FakeIssuer() as issuer:
        document = {"issuer": issuer.url, "jwks_uri": address}
        issuer.documents["/.well-known/openid-configuration"] = json.dumps(document).encode()
        with pytest.raises(IssuerUnavailable):
            reader(issuer).read(issuer.token())


def test_tokens_and_keys_are_accepted_side_by_side(
    guarded: ControlPlane, issuer: FakeIssuer
) -> None:
    plane = ControlPlane(guarded.folder, auth="on", oidc_issuer=issuer.url, oidc_audience=AUDIENCE)
    token = issuer.token()
    known = KeyClient(plane, token).get("/v1/whoami").json()
    assert known == {"name": "oidc:somebody", "owner": "lab", "scopes": ["read", "write"]}
    plane.client = KeyClient(plane, token)
    plane.create_model()
    assert plane.model().owner == "lab"
    assert KeyClient(plane, token).get("/v1/keys").status_code == 403
    answers = {
        name: KeyClient(plane, shown).get("/v1/models").status_code
        for name, shown in {
            "expired": issuer.token(exp=int(time.time()) - 3600),
            "ownerless": issuer.token(cmcl_owner=None),
            "key": "cmcl_" + "0" * 12 + "_" + "A" * 43,
        }.items()
    }
    assert answers == {"expired": 401, "ownerless": 403, "key": 401}
    # Without a configured issuer, a token counts as an invalid key.
    assert KeyClient(guarded, token).get("/v1/models").status_code == 401
    plane.close()


def test_a_valid_token_passes_behind_an_address_of_guessers(
    guarded: ControlPlane, issuer: FakeIssuer
) -> None:
    plane = ControlPlane(guarded.folder, auth="on", oidc_issuer=issuer.url, oidc_audience=AUDIENCE)
    forged = issuer.token()[:-8] + "AAAAAAAA"
    guesses = [
        KeyClient(plane, forged).get("/v1/models").status_code
        for _ in range(2 * FAILURES_PER_MINUTE + 2)
    ]
    assert (guesses[0], guesses[-1]) == (401, 429)
    # A token that was never seen is accepted too: clients that renew tokens often send new ones.
    assert KeyClient(plane, issuer.token()).get("/v1/models").status_code == 200
    assert KeyClient(plane, forged).get("/v1/models").status_code == 429
    plane.close()


def test_an_unavailable_issuer_is_503_with_a_hint(guarded: ControlPlane) -> None:
    with FakeIssuer() as issuer:
        token = issuer.token()
    plane = ControlPlane(guarded.folder, auth="on", oidc_issuer=issuer.url, oidc_audience=AUDIENCE)
    response = KeyClient(plane, token).get("/v1/models")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["type"] == "urn:cmcl:problem:issuer-unavailable"
    plane.close()
