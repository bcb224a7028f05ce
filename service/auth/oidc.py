"""OpenID Connect: bearer tokens of an issuer (RFC 7519, OpenID Connect Discovery 1.0), and signing browsers in.

The issuer's keys are fetched when first needed and kept for some minutes. While the issuer does not respond, requests
fail with 503: the tokens may be valid, so 401 would be wrong.

A browser is signed in by the authorization code flow with PKCE (RFC 6749, 7636, OpenID Connect Core). What must be
remembered between the two requests is in a cookie of the browser, signed, for ten minutes: state and nonce, which tie
the issuer's answer to this browser, and the verifier of PKCE. Instances need no state that they share. The rights of the
session are those of the token, by the same rules as for tokens in the header of `/v1`: the access token counts, or else
the ID token if its audience is that of the settings.
"""

import base64
import hashlib
import hmac
import logging
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx
import jwt

from cmcl.contract.api.access import Scope
from cmcl.contract.modality import NAME_PATTERN
from service.core.errors import FieldProblem, Forbidden, IssuerUnavailable, Unauthorized
from service.core.principal import Principal
from service.core.settings import Settings

logger = logging.getLogger(__name__)

# Asymmetric only: `none` and the HMAC family are never accepted.
_ALGORITHMS = [
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
]
_REQUIRED = ["exp", "iss", "aud", "sub"]
# Tolerance for differing clocks.
_LEEWAY_SECONDS = 60
_TIMEOUT_SECONDS = 5.0
_KEYS_KEPT_SECONDS = 600.0
# Pause after an issuer did not respond: waiting for it would use up threads.
_PAUSE_SECONDS = 10.0
_BASIC = "client_secret_basic"
_SCOPE_PREFIX = "cmcl:"
_LONGEST_NAME = 100

# ValueError: the library raises it if the response is not JSON.
_UNAVAILABLE = (jwt.PyJWKClientConnectionError, jwt.PyJWKSetError, ValueError, IssuerUnavailable)
_NOT_VALID = "the token is not valid: not of our issuer, not for us, or not at this time"

# Between the two requests of a sign-in.
SIGN_IN_SECONDS = 600
_RANDOM_BYTES = 32
_COOKIE_ALGORITHM = "HS256"
_AGAIN = "the sign-in was begun in another browser or more than ten minutes ago; begin again"
_NO_RIGHTS = (
    "the issuer signed you in, but its tokens are not for this service: the access token, or the ID token, needs "
    "the audience CMCL_OIDC_AUDIENCE"
)


@dataclass(frozen=True)
class Discovery:
    """What the issuer says of itself. The endpoints are None if it does not sign in browsers."""

    keys: jwt.PyJWKClient
    authorization_endpoint: str | None
    token_endpoint: str | None
    takes_basic: bool


class OidcTokens:
    """Reads tokens of one issuer. Raises Unauthorized, Forbidden and IssuerUnavailable."""

    def __init__(self, issuer: str, audience: str, owner_claim: str) -> None:
        self._issuer = issuer
        self._audience = audience
        self._owner_claim = owner_claim
        self._lock = threading.Lock()
        self._discovery: Discovery | None = None
        self._paused_until = 0.0

    def read(self, token: str) -> Principal:
        """The token's principal: name from `sub`, scopes from `scope` and `scp`."""
        try:
            claims = self._claims(token, self._audience)
        except jwt.PyJWTError as error:
            logger.info("a token was refused: %s", type(error).__name__)
            raise Unauthorized(_NOT_VALID) from error
        return Principal(_name(claims["sub"]), self._owner(claims), _scopes(claims))

    def read_id_token(self, token: str, client_id: str, nonce: str) -> None:
        """Verify an ID token that this client asked for with that nonce. Raises Unauthorized, IssuerUnavailable."""
        try:
            claims = self._claims(token, client_id)
        except jwt.PyJWTError as error:
            logger.info("an ID token was refused: %s", type(error).__name__)
            raise Unauthorized(_NOT_VALID) from error
        shown = claims.get("nonce")
        if not isinstance(shown, str) or not hmac.compare_digest(shown.encode(), nonce.encode()):
            raise Unauthorized(_NOT_VALID)

    def discover(self) -> Discovery:
        """The issuer's endpoints and keys, fetched once. Raises IssuerUnavailable."""
        with self._asking():
            return self._discovered()

    def _claims(self, token: str, audience: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        if header.get("alg") not in _ALGORITHMS:
            raise jwt.InvalidAlgorithmError("not an asymmetric algorithm")
        claims: dict[str, Any] = jwt.decode(
            token,
            self._key(str(header.get("kid"))),
            algorithms=_ALGORITHMS,
            audience=audience,
            issuer=self._issuer,
            leeway=_LEEWAY_SECONDS,
            options={"require": _REQUIRED},
        )
        return claims

    def _key(self, name: str) -> jwt.PyJWK:
        with self._asking():
            return self._discovered().keys.get_signing_key(name)

    def _discovered(self) -> Discovery:
        self._discovery = self._discovery or self._discover()
        return self._discovery

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """One thread asks the issuer at a time; the others reuse its result or failure."""
        with self._lock:
            if time.monotonic() < self._paused_until:
                raise IssuerUnavailable(f"the issuer {self._issuer} did not respond")
            try:
                yield
            except _UNAVAILABLE as error:
                self._paused_until = time.monotonic() + _PAUSE_SECONDS
                logger.warning("the issuer of tokens cannot be used: %s", error)
                raise IssuerUnavailable(f"the issuer {self._issuer} did not respond") from error

    def _discover(self) -> Discovery:
        """Discover the keys. A document about another issuer is rejected."""
        url = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
        try:
            answer = httpx.get(url, timeout=_TIMEOUT_SECONDS).raise_for_status()
            document = answer.json()
            issuer, address = str(document["issuer"]), str(document["jwks_uri"])
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            raise IssuerUnavailable(f"{url}: {error}") from error
        if issuer != self._issuer or _is_insecure(address, self._issuer):
            raise IssuerUnavailable(f"{url} describes issuer {issuer!r} with keys at {address!r}")
        methods = document.get("token_endpoint_auth_methods_supported", [_BASIC])
        return Discovery(
            jwt.PyJWKClient(address, lifespan=_KEYS_KEPT_SECONDS, timeout=_TIMEOUT_SECONDS),
            self._endpoint(document, "authorization_endpoint"),
            self._endpoint(document, "token_endpoint"),
            takes_basic=_BASIC in methods if isinstance(methods, list) else True,
        )

    def _endpoint(self, document: dict[str, Any], name: str) -> str | None:
        address = document.get(name)
        if not isinstance(address, str) or _is_insecure(address, self._issuer):
            return None
        return address

    def _owner(self, claims: dict[str, Any]) -> str:
        owner = claims.get(self._owner_claim)
        # The same pattern as for keys: other names could not be requested, and `*` means all owners.
        if isinstance(owner, str) and re.fullmatch(NAME_PATTERN, owner):
            return owner
        message = (
            f"the token names no owner: it needs the claim {self._owner_claim!r} "
            "with lower-case letters, digits and inner hyphens, 1 to 48 characters"
        )
        raise Forbidden(message, FieldProblem(self._owner_claim, message))


def _is_insecure(address: str, issuer: str) -> bool:
    """Whether the address lacks TLS although the issuer has it."""
    permitted = ("https://",) if issuer.startswith("https://") else ("https://", "http://")
    return not address.startswith(permitted)


def _scopes(claims: dict[str, Any]) -> frozenset[Scope]:
    """Our scopes; a token may contain others for other services."""
    named: set[str] = set()
    for claim in ("scope", "scp"):
        value = claims.get(claim)
        parts = value.split() if isinstance(value, str) else value
        if isinstance(parts, list):
            named.update(part for part in parts if isinstance(part, str))
    return frozenset(scope for scope in Scope if f"{_SCOPE_PREFIX}{scope}" in named)


def _name(subject: str) -> str:
    """The actor name; the colon distinguishes it from names of keys."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in subject)
    return f"oidc:{printable[:_LONGEST_NAME]}"


@dataclass(frozen=True)
class Begun:
    """Where to send the browser, and what it has to remember."""

    address: str
    cookie: str


class OidcLogin:
    """Sends browsers to the issuer, and turns what they come back with into principals. Both may block."""

    def __init__(self, tokens: OidcTokens, settings: Settings) -> None:
        secret, encryption = settings.oidc_client_secret, settings.encryption_key
        self._tokens = tokens
        self._client_id = settings.oidc_client_id or ""
        self._secret = secret.get_secret_value() if secret else None
        self._scopes = " ".join(settings.oidc_scopes)
        self._redirect_uri = f"{settings.page_url}/oidc/callback"
        # Any secret that all instances have; the settings require one of them.
        shared = self._secret or (encryption.get_secret_value() if encryption else "")
        self._key = hashlib.sha256(f"cmcl oidc state {shared}".encode()).digest()

    def begin(self, following: str) -> Begun:
        """Begin a sign-in that leads to an address of the page. Raises IssuerUnavailable."""
        endpoint = self._tokens.discover().authorization_endpoint
        if endpoint is None:
            raise IssuerUnavailable("the issuer has no authorization endpoint")
        state, nonce, verifier = (secrets.token_urlsafe(_RANDOM_BYTES) for _ in range(3))
        challenge = hashlib.sha256(verifier.encode()).digest()
        query = {
            "response_type": "code",
            "client_id": self._client_id,
            "redirect_uri": self._redirect_uri,
            "scope": self._scopes,
            "state": state,
            "nonce": nonce,
            "code_challenge": base64.urlsafe_b64encode(challenge).decode().rstrip("="),
            "code_challenge_method": "S256",
        }
        memory: dict[str, str | int] = {
            "state": state,
            "nonce": nonce,
            "verifier": verifier,
            "following": following,
        }
        memory["exp"] = int(time.time()) + SIGN_IN_SECONDS
        separator = "&" if "?" in endpoint else "?"
        cookie = jwt.encode(memory, self._key, algorithm=_COOKIE_ALGORITHM)
        return Begun(f"{endpoint}{separator}{urlencode(query)}", cookie)

    def finish(self, code: str, state: str, cookie: str) -> tuple[Principal, str]:
        """The principal of the issuer's answer, and the address that the sign-in leads to.

        Raises Unauthorized, Forbidden and IssuerUnavailable.
        """
        try:
            memory = jwt.decode(cookie, self._key, algorithms=[_COOKIE_ALGORITHM])
        except jwt.PyJWTError as error:
            raise Unauthorized(_AGAIN) from error
        if not hmac.compare_digest(memory["state"].encode(), state.encode()):
            raise Unauthorized(_AGAIN)
        answer = self._redeem(code, memory["verifier"])
        id_token = str(answer.get("id_token", ""))
        self._tokens.read_id_token(id_token, self._client_id, memory["nonce"])
        for token in (str(answer.get("access_token", "")), id_token):
            try:
                return self._tokens.read(token), memory["following"]
            except Unauthorized:
                continue
        raise Forbidden(_NO_RIGHTS)

    def _redeem(self, code: str, verifier: str) -> dict[str, object]:
        found = self._tokens.discover()
        if found.token_endpoint is None:
            raise IssuerUnavailable("the issuer has no token endpoint")
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": verifier,
        }
        basic = None
        if self._secret is not None and found.takes_basic:
            basic = httpx.BasicAuth(self._client_id, self._secret)
        else:
            form |= {"client_id": self._client_id}
            form |= {"client_secret": self._secret} if self._secret is not None else {}
        try:
            answer = httpx.post(
                found.token_endpoint, data=form, auth=basic, timeout=_TIMEOUT_SECONDS
            )
            document = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            logger.warning("the issuer did not redeem a code: %s", type(error).__name__)
            raise IssuerUnavailable("the issuer did not respond") from error
        if answer.status_code >= 500 or not isinstance(document, dict):
            raise IssuerUnavailable("the issuer did not respond")
        if answer.status_code != 200:
            logger.info("the issuer refused a code: %s", str(document.get("error"))[:100])
            raise Unauthorized("the issuer did not accept the sign-in; begin again")
        return document
