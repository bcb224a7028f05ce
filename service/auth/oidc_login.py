"""Signing a browser in with an OpenID issuer: the authorization code flow with PKCE (RFC 6749, 7636, OpenID Connect Core).

What must be remembered between the two requests lies in a cookie of the browser, signed, for ten minutes: state and nonce,
which tie the issuer's answer to this browser, and the verifier of PKCE. Replicas need no state that they share.

The rights of the session are those of the token, by the same rules as for tokens in the header of `/v1`: the access token
counts, or else the ID token if its audience is that of the settings.
"""

import base64
import hashlib
import hmac
import json
import logging
import secrets
import time
from dataclasses import dataclass
from urllib.parse import urlencode

import httpx

from service.auth.oidc import OidcTokens
from service.errors import Forbidden, IssuerUnavailable, Unauthorized
from service.principal import Principal
from service.settings import Settings

logger = logging.getLogger(__name__)

SECONDS = 600
_TIMEOUT_SECONDS = 5.0
_RANDOM_BYTES = 32
_LONGEST = 4096
_AGAIN = "the sign-in was begun in another browser or more than ten minutes ago; begin again"
_NO_RIGHTS = (
    "the issuer signed you in, but its tokens are not for this service: the access token, or the ID token, needs "
    "the audience CMCL_OIDC_AUDIENCE"
)


@dataclass(frozen=True)
class Begun:
    """Where to send the browser, and what it has to remember."""

    address: str
    cookie: str


@dataclass(frozen=True)
class _Memory:
    """The content of the cookie."""

    state: str
    nonce: str
    verifier: str
    following: str
    until: float


class OidcLogin:
    """Sends browsers to the issuer, and turns what they come back with into principals. Both may block."""

    def __init__(self, tokens: OidcTokens, settings: Settings) -> None:
        secret, encryption = settings.oidc_client_secret, settings.encryption_key
        self._tokens = tokens
        self._client_id = settings.oidc_client_id or ""
        self._secret = secret.get_secret_value() if secret else None
        self._scopes = " ".join(settings.oidc_scopes)
        self._redirect_uri = f"{settings.page_url}/oidc/callback"
        # Any secret that all replicas have; the settings require one of them.
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
        memory = _Memory(state, nonce, verifier, following, time.time() + SECONDS)
        separator = "&" if "?" in endpoint else "?"
        return Begun(f"{endpoint}{separator}{urlencode(query)}", self._written(memory))

    def finish(self, code: str, state: str, cookie: str) -> tuple[Principal, str]:
        """The principal of the issuer's answer, and the address that the sign-in leads to.

        Raises Unauthorized, Forbidden and IssuerUnavailable.
        """
        memory = self._read(cookie)
        if memory is None or not hmac.compare_digest(memory.state.encode(), state.encode()):
            raise Unauthorized(_AGAIN)
        answer = self._redeem(code, memory.verifier)
        id_token = str(answer.get("id_token", ""))
        self._tokens.read_id_token(id_token, self._client_id, memory.nonce)
        for token in (str(answer.get("access_token", "")), id_token):
            try:
                return self._tokens.read(token), memory.following
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

    def _written(self, memory: _Memory) -> str:
        text = base64.urlsafe_b64encode(json.dumps(vars(memory)).encode()).decode()
        return f"{text}.{self._signature(text)}"

    def _read(self, cookie: str) -> _Memory | None:
        text, _, signature = cookie.partition(".")
        if len(cookie) > _LONGEST or not hmac.compare_digest(
            self._signature(text).encode(), signature.encode()
        ):
            return None
        memory = _Memory(**json.loads(base64.urlsafe_b64decode(text)))
        return memory if time.time() < memory.until else None

    def _signature(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()
