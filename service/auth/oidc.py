"""OpenID Connect: bearer tokens of an issuer (RFC 7519, OpenID Connect Discovery 1.0).

The issuer's keys are fetched when first needed and kept for some minutes. While the issuer does not respond, requests
fail with 503: the tokens may be valid, so 401 would be wrong.

Browsers are signed in by a proxy such as oauth2-proxy, which sends the token of its session with each request.
"""

import logging
import re
import threading
import time
from typing import Any

import httpx
import jwt

from cmcl.contract.api.access import Scope
from cmcl.contract.modality import NAME_PATTERN
from service.core.errors import FieldProblem, Forbidden, IssuerUnavailable, Unauthorized
from service.core.principal import Principal

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
_SCOPE_PREFIX = "cmcl:"
_LONGEST_NAME = 100

# ValueError: the library raises it if the response is not JSON.
_UNAVAILABLE = (jwt.PyJWKClientConnectionError, jwt.PyJWKSetError, ValueError, IssuerUnavailable)
_NOT_VALID = "the token is not valid: not of our issuer, not for us, or not at this time"


class OidcTokens:
    """Reads tokens of one issuer. Raises Unauthorized, Forbidden and IssuerUnavailable."""

    def __init__(self, issuer: str, audience: str, owner_claim: str) -> None:
        self._issuer = issuer
        self._audience = audience
        self._owner_claim = owner_claim
        self._lock = threading.Lock()
        self._keys: jwt.PyJWKClient | None = None
        self._paused_until = 0.0

    def read(self, token: str) -> Principal:
        """The token's principal: name from `sub`, scopes from `scope` and `scp`."""
        try:
            claims = self._claims(token)
        except jwt.PyJWTError as error:
            logger.info("a token was refused: %s", type(error).__name__)
            raise Unauthorized(_NOT_VALID) from error
        return Principal(_name(claims["sub"]), self._owner(claims), _scopes(claims))

    def _claims(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        if header.get("alg") not in _ALGORITHMS:
            raise jwt.InvalidAlgorithmError("not an asymmetric algorithm")
        claims: dict[str, Any] = jwt.decode(
            token,
            self._key(str(header.get("kid"))),
            algorithms=_ALGORITHMS,
            audience=self._audience,
            issuer=self._issuer,
            leeway=_LEEWAY_SECONDS,
            options={"require": _REQUIRED},
        )
        return claims

    def _key(self, name: str) -> jwt.PyJWK:
        """One thread asks the issuer at a time; the others reuse its result or failure."""
        with self._lock:
            if time.monotonic() < self._paused_until:
                raise IssuerUnavailable(f"the issuer {self._issuer} did not respond")
            try:
                self._keys = self._keys or self._discover()
                return self._keys.get_signing_key(name)
            except _UNAVAILABLE as error:
                self._paused_until = time.monotonic() + _PAUSE_SECONDS
                logger.warning("the issuer of tokens cannot be used: %s", error)
                raise IssuerUnavailable(f"the issuer {self._issuer} did not respond") from error

    def _discover(self) -> jwt.PyJWKClient:
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
        return jwt.PyJWKClient(address, lifespan=_KEYS_KEPT_SECONDS, timeout=_TIMEOUT_SECONDS)

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
