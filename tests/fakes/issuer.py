"""An issuer of tokens on loopback, with real keys: discovery and JWKS over HTTP."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

AUDIENCE = "cmcl-tests"
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def rsa_key() -> rsa.RSAPrivateKey:
    """An RSA key of the usual size."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class FakeIssuer:
    """Answers while it runs; `documents` can be changed."""

    def __init__(self) -> None:
        self.keys: dict[str, PrivateKey] = {"first": rsa_key()}
        self.documents: dict[str, bytes] = {}
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self.publish()
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def publish(self) -> None:
        """Publish the current keys."""
        discovery = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        keys = [
            {**_public(key), "kid": name, "use": "sig", "alg": _algorithm(key)}
            for name, key in self.keys.items()
        ]
        self.documents = {
            "/.well-known/openid-configuration": json.dumps(discovery).encode(),
            "/keys": json.dumps({"keys": keys}).encode(),
        }

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Claims of a valid token; None omits one."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "somebody",
            "iat": now,
            "exp": now + 300,
            "scope": "openid cmcl:read cmcl:write",
            "cmcl_owner": "lab",
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, key: str = "first", **changes: Any) -> str:
        """A token, signed with that key."""
        private = self.keys[key]
        return jwt.encode(
            self.claims(**changes), private, _algorithm(private), headers={"kid": key}
        )

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                body = issuer.documents.get(self.path)
                self.send_response(200 if body is not None else 500)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *args: object) -> None:
                """Log nothing."""

        return Handler


def _public(key: PrivateKey) -> dict[str, Any]:
    if isinstance(key, rsa.RSAPrivateKey):
        return dict(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True))
    return dict(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True))


def _algorithm(key: PrivateKey) -> str:
    return "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
