"""A client for the REST API, the command line, and a local stack.

`service` and `workers` import `cmcl.contract` alone, so the client is loaded when it is first used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmcl.client import AsyncClient, Client, CmclError

__all__ = ["AsyncClient", "Client", "CmclError"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cmcl import client

    return getattr(client, name)
