"""What a route asks of whoever sent the request.

`Authentication` has found the principal before a route is even looked for; a route takes it as
Reader, Writer, Trainer, Admin or Anybody, and so says which scope it needs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from service.errors import Forbidden
from service.principal import Principal, Scope

# Everything else needs a key, also addresses that do not exist.
OPEN_PATHS = frozenset(
    {
        *("/healthz", "/readyz", "/metrics"),
        *("/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"),
    }
)


async def get_principal(request: Request) -> Principal:
    """Whoever sent the request."""
    principal: Principal = request.state.principal
    return principal


@dataclass(frozen=True)
class Needs:
    """A route's demand for a scope. Raises Forbidden."""

    scope: Scope

    async def __call__(self, principal: Annotated[Principal, Depends(get_principal)]) -> Principal:
        """The principal, if it has the scope."""
        if self.scope not in principal.scopes:
            has = ", ".join(sorted(principal.scopes)) or "none"
            raise Forbidden(f"the scope {self.scope.value!r} is needed; your key has: {has}")
        return principal


def scopes_of(route: APIRoute) -> list[Scope]:
    """The scopes that a route needs; none where any key will do."""
    return sorted({demand.scope for demand in _demands(route.dependant)})


def _demands(dependant: Dependant) -> Iterator[Needs]:
    if isinstance(dependant.call, Needs):
        yield dependant.call
    for inner in dependant.dependencies:
        yield from _demands(inner)


Anybody = Annotated[Principal, Depends(get_principal)]
Reader = Annotated[Principal, Depends(Needs(Scope.READ))]
Writer = Annotated[Principal, Depends(Needs(Scope.WRITE))]
Trainer = Annotated[Principal, Depends(Needs(Scope.TRAIN))]
Admin = Annotated[Principal, Depends(Needs(Scope.ADMIN))]
