"""What a route asks of whoever sent the request.

`Authentication` has found the principal before a route is even looked for; a route takes it as
Reader, Writer, Trainer, Admin or Anybody, and so says which scope it needs: to us, and in the
description of the API.
"""

from collections.abc import Iterable
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer, SecurityScopes

from service.errors import Forbidden
from service.principal import Principal, Scope

# Kubernetes asks these by the address of the pod.
PROBES = frozenset({"/healthz", "/readyz"})
# A key of its own, if any: whoever scrapes is no user.
METRICS = "/metrics"
# Everything else needs a key, also addresses that do not exist.
OPEN_PATHS = frozenset(
    {
        *PROBES,
        METRICS,
        *("/openapi.json", "/docs", "/docs/start", "/docs/script", "/docs/style"),
    }
)

# For the description alone: the header was read before.
_DESCRIBED = HTTPBearer(
    scheme_name="bearer",
    auto_error=False,
    description="A key, `cmcl_...`, or a token of the configured issuer. Each operation names the "
    "scope that it needs.",
)


async def get_principal(
    request: Request, needed: SecurityScopes, _: Annotated[object, Security(_DESCRIBED)]
) -> Principal:
    """Whoever sent the request. Raises Forbidden without the scopes that the route needs."""
    principal: Principal = request.state.principal
    check_scopes(principal, needed.scopes)
    return principal


def check_scopes(principal: Principal, needed: Iterable[str]) -> None:
    """Raises Forbidden for the first scope that is missing."""
    for scope in needed:
        if scope not in principal.scopes:
            has = ", ".join(sorted(principal.scopes)) or "none"
            raise Forbidden(f"this needs the scope {str(scope)!r}; your key has: {has}")


Anybody = Annotated[Principal, Depends(get_principal)]
Reader = Annotated[Principal, Security(get_principal, scopes=[Scope.READ])]
Writer = Annotated[Principal, Security(get_principal, scopes=[Scope.WRITE])]
Trainer = Annotated[Principal, Security(get_principal, scopes=[Scope.TRAIN])]
Admin = Annotated[Principal, Security(get_principal, scopes=[Scope.ADMIN])]
