"""A request to a replica needs a key from the list that the control plane signed."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import ValidationError

from cmcl.contract.api.access import OPERATOR_KEY, SNAPSHOT_TYPE, KeySnapshot, SnapshotKey
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from service.auth.keys import KeyText, mint
from service.auth.sessions import SessionTokens
from service.auth.signing import make_pair, sign
from service.core.principal import EVERY_SCOPE, Principal
from service.core.setting_values import read_signing_key
from tests.fakes.flaky_store import FlakyStore
from workers.serve.auth import Caller, SignedKeys, read_public_keys
from workers.serve.errors import ApiError, NotReady, Unauthorized
from workers.serve.settings import ServeSettings

PAIR, OTHER_PAIR = make_pair(), make_pair()
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
OPERATORS_SECRET = "a key of the operator, äöü, 32 characters"


@dataclass
class AuthScene:
    """An authenticator, the store that it reads, and its recorded metrics."""

    store: FlakyStore
    public: str = PAIR.public
    now: datetime = NOW
    refused: int = 0
    authenticator: SignedKeys = field(init=False)

    def __post_init__(self) -> None:
        self.authenticator = SignedKeys(
            read_public_keys(self.public),
            refused=self._count,
            clock=self._seconds,
            seconds_between_reads=0,
        )

    def put(self, token: bytes) -> None:
        """Store this list, and make the authenticator read it."""
        self.store.put(layout.key_snapshot(), token)
        self.authenticator.refresh(self.store)

    def show(self, keys: Sequence[SnapshotKey], serial: int = 1) -> None:
        self.put(token(keys, serial))

    def admits(self, key: KeyText) -> bool:
        try:
            self.authenticator.authenticate(f"Bearer {key.text}")
        except Unauthorized:
            return False
        return True

    def _seconds(self) -> float:
        return self.now.timestamp()

    def _count(self) -> None:
        self.refused += 1


@pytest.fixture
def scene(tmp_path: Path) -> AuthScene:
    return AuthScene(FlakyStore(LocalStore(tmp_path)))


def entry(key: KeyText, **more: object) -> SnapshotKey:
    values = {"id": key.id, "name": "one", "sha256": key.digest, "owner": "lab", **more}
    return SnapshotKey.model_validate(values)


def token(keys: Sequence[SnapshotKey], serial: int = 1, private: str = PAIR.private) -> bytes:
    snapshot = KeySnapshot(serial=serial, issued_at=NOW, keys=tuple(keys))
    return sign(snapshot, SNAPSHOT_TYPE, read_signing_key(private)).encode()


def refusal(scene: AuthScene, header: str | None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        scene.authenticator.authenticate(header)
    return caught.value


def test_a_listed_key_lets_its_owner_in(scene: AuthScene) -> None:
    key, everybodys = mint(), mint()
    scene.show([entry(key), entry(everybodys, owner=None)])
    assert scene.authenticator.authenticate(f"Bearer {key.text}") == Caller(key.id, "lab")
    assert scene.authenticator.authenticate(f"bearer  {everybodys.text} ") == Caller(
        everybodys.id, None
    )


def test_the_operators_key_needs_no_form(scene: AuthScene) -> None:
    like_others = mint()
    for secret in (OPERATORS_SECRET, like_others.text):
        digest = hashlib.sha256(secret.encode()).hexdigest()
        operator = SnapshotKey(id=OPERATOR_KEY, name="operator", sha256=digest, owner=None)
        scene.show([operator])
        assert scene.authenticator.authenticate(f"Bearer {secret}") == Caller(OPERATOR_KEY, None)
        assert isinstance(refusal(scene, f"Bearer {secret}x"), Unauthorized)


def test_all_keys_that_are_not_valid_get_the_same_message(scene: AuthScene) -> None:
    expired, revoked, good = mint(), mint(), mint()
    scene.show([entry(expired, expires_at=NOW), entry(revoked), entry(good)])
    scene.show([entry(expired, expires_at=NOW), entry(good)], serial=2)
    mistyped = KeyText(good.id, secrets.token_urlsafe(32))
    headers = [f"Bearer {key.text}" for key in (expired, revoked, mistyped, mint())]
    headers += ["Bearer ", "Bearer cmcl_", f"Bearer {good.id}", "Bearer operator", "Bearer \xff"]
    refusals = [refusal(scene, header) for header in headers]
    assert {type(each) for each in refusals} == {Unauthorized}
    assert len({str(each) for each in refusals}) == 1
    assert refusals[0].code == "invalid_api_key"
    assert refusals[0].headers["www-authenticate"] == "Bearer"
    assert scene.admits(good)


@pytest.mark.parametrize("header", [None, "", "Basic YTpi", "cmcl_0123456789ab_x"])
def test_a_request_without_a_key_gets_a_hint(scene: AuthScene, header: str | None) -> None:
    scene.show([])
    assert "Authorization: Bearer" in str(refusal(scene, header))


def test_a_key_expires_by_the_clock_without_a_new_list(scene: AuthScene) -> None:
    key = mint()
    scene.show([entry(key, expires_at=NOW + timedelta(seconds=10))])
    assert scene.admits(key)
    scene.now += timedelta(seconds=10)
    assert not scene.admits(key)


def test_before_the_first_list_it_says_not_yet(scene: AuthScene) -> None:
    scene.authenticator.refresh(scene.store)
    assert not scene.authenticator.ready
    error = refusal(scene, f"Bearer {mint().text}")
    assert isinstance(error, NotReady)
    assert "retry-after" in error.headers
    scene.show([])
    assert scene.authenticator.ready


def not_believed(key: KeyText) -> dict[str, bytes]:
    """Lists that an attacker without the signing key could write, each with the attacker's key."""
    snapshot = KeySnapshot(serial=9, issued_at=NOW, keys=(entry(key),))
    payload = snapshot.model_dump_json().encode()
    header = {"typ": SNAPSHOT_TYPE}
    ours = read_signing_key(PAIR.private)
    jws = jwt.PyJWS()
    public_as_secret = ours.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    good = token([entry(key)], serial=9).decode().split(".")
    old = token([], serial=9).decode().split(".")
    return {
        "nothing": b"",
        "noise": b"\xff\x00 no token",
        "by another key": token([entry(key)], 9, OTHER_PAIR.private),
        "without a signature": jws.encode(payload, "", "none", header).encode(),
        "by the public key as a secret": jws.encode(
            payload, public_as_secret, "HS256", header
        ).encode(),
        "of another type": jws.encode(payload, ours, "EdDSA", {"typ": "JWT"}).encode(),
        "without a type": jws.encode(payload, ours, "EdDSA").encode(),
        "with others' payload": ".".join([old[0], good[1], old[2]]).encode(),
        "of another format": jws.encode(
            payload.replace(b'"format":1', b'"format":2'), ours, "EdDSA", header
        ).encode(),
        "no list": jws.encode(b"[]", ours, "EdDSA", header).encode(),
    }


@pytest.mark.parametrize("kind", sorted(not_believed(mint())))
def test_an_unsigned_key_list_is_not_accepted(
    scene: AuthScene, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    good, forged = mint(), mint()
    scene.show([entry(good)])
    for _ in range(3):
        scene.put(not_believed(forged)[kind])
    assert scene.admits(good)
    assert not scene.admits(forged)
    assert scene.refused == 1
    assert [line for line in caplog.messages if "not believed" in line]
    assert not [line for line in caplog.messages if forged.secret in line]


def test_an_old_list_that_is_put_back_revives_no_key(scene: AuthScene) -> None:
    key = mint()
    before = token([entry(key)], serial=5)
    scene.put(before)
    assert scene.admits(key)
    scene.show([], serial=6)
    scene.put(before)
    assert not scene.admits(key)
    assert scene.refused == 1


@pytest.mark.parametrize("is_gone", [False, True])
def test_while_the_store_is_unavailable_the_last_list_is_in_force(
    scene: AuthScene, is_gone: bool, caplog: pytest.LogCaptureFixture
) -> None:
    key = mint()
    scene.show([entry(key)])
    for outage in range(1, 3):
        if is_gone:
            scene.store.delete(layout.key_snapshot())
        scene.store.broken = None if is_gone else "access/"
        for _ in range(3):
            scene.authenticator.refresh(scene.store)
        assert scene.admits(key)
        assert len([line for line in caplog.messages if "stays as it is" in line]) == outage
        scene.store.broken = None
        scene.show([entry(key)])


def test_lists_of_both_keys_are_accepted_during_a_key_rotation(tmp_path: Path) -> None:
    scene = AuthScene(FlakyStore(LocalStore(tmp_path)), public=OTHER_PAIR.public + PAIR.public)
    first, second = mint(), mint()
    scene.put(token([entry(first)], 1, PAIR.private))
    assert scene.admits(first)
    scene.put(token([entry(second)], 2, OTHER_PAIR.private))
    assert (scene.admits(first), scene.admits(second)) == (False, True)


def test_the_list_is_read_once_in_a_while_however_often_is_looked(tmp_path: Path) -> None:
    store = FlakyStore(LocalStore(tmp_path))
    authenticator = SignedKeys(read_public_keys(PAIR.public), seconds_between_reads=60)
    for _ in range(5):
        authenticator.refresh(store)
    assert store.calls == [layout.key_snapshot()]


def _of_another_kind() -> str:
    public = generate_private_key(SECP256R1()).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.mark.parametrize(
    ("pem", "complaint"),
    [
        ("", "no block"),
        ("MCowBQYDK2VwAyEA", "no block"),
        (PAIR.private, "cannot be read as a public key"),
        (PAIR.public.replace("MCow", "MCox"), "cannot be read as a public key"),
        (PAIR.public + _of_another_kind(), "of kind ECPublicKey"),
    ],
)
def test_serving_does_not_start_with_a_wrong_public_key(pem: str, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint) as caught:
        ServeSettings(store="file:///store", access_public_key=pem)
    assert caught.value.errors()[0]["loc"] == ("access_public_key",)
    both = ServeSettings(store="file:///store", access_public_key=PAIR.public + OTHER_PAIR.public)
    assert both.access_public_key is not None


def session_token(scene: AuthScene, owner: str | None = "lab", private: str = PAIR.private) -> str:
    """The header of a request that the page sends for a session of that owner."""
    tokens = SessionTokens(read_signing_key(private), lambda: scene.now)
    return tokens.authorization(Principal("ann", owner, EVERY_SCOPE), "ses-0123456789ab")


def test_a_session_of_the_page_is_let_in_for_its_owner(scene: AuthScene) -> None:
    scene.show([])
    for owner in ("lab", None):
        caller = scene.authenticator.authenticate(session_token(scene, owner))
        assert caller == Caller("session ses-0123456789ab", owner)


def test_a_token_of_a_session_is_valid_for_a_minute(scene: AuthScene) -> None:
    scene.show([])
    header = session_token(scene)
    scene.now += timedelta(seconds=59)
    assert scene.authenticator.authenticate(header).owner == "lab"
    scene.now += timedelta(seconds=1)
    assert isinstance(refusal(scene, header), Unauthorized)


def test_tokens_that_the_control_plane_has_not_signed_are_refused(scene: AuthScene) -> None:
    scene.show([])
    good = session_token(scene)
    head, payload, signature = good.removeprefix("Bearer ").split(".")
    of_other = session_token(scene, private=OTHER_PAIR.private)
    other_payload = session_token(scene, None).split(".")[1]
    unsigned = jwt.PyJWS().encode(b"{}", "", "none", headers={"typ": "cmcl-session+jwt"})
    shared = jwt.PyJWS().encode(b"{}", "s" * 32, "HS256", headers={"typ": "cmcl-session+jwt"})
    for text in (
        of_other.removeprefix("Bearer "),
        f"{head}.{other_payload}.{signature}",
        f"{head}.{payload}.",
        f"{head}.{payload}.{signature[:-4]}AAAA",
        f".{payload}.{signature}",
        "..",
        "a.b.c",
        f"{head}.{payload}.{signature}" + "x" * 2000,
        "\xff.\xff.\xff",
        unsigned,
        shared,
        # A signed list of keys is not a token, and a token is not a list of keys.
        token([]).decode(),
    ):
        assert isinstance(refusal(scene, f"Bearer {text}"), Unauthorized), text[:80]
    scene.put(good.removeprefix("Bearer ").encode())
    assert scene.refused == 1
    assert scene.authenticator.authenticate(good).owner == "lab"


def test_before_the_first_list_a_token_waits_as_well(scene: AuthScene) -> None:
    assert isinstance(refusal(scene, session_token(scene)), NotReady)
