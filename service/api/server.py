"""The HTTP server of the service: uvicorn, which a proxy stands before (cmcl/service_proxy.cfg)."""

import resource
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from service.core.settings import Settings

# Connections of the proxy, and files of the database, object storage and child processes.
_DESCRIPTORS = 8192
# The proxy keeps connections for 30 s after a response, and is the one to close them.
_KEEP_ALIVE_SECONDS = 75
# A client that stops reading would keep the process from exiting.
_GRACEFUL_SECONDS = 10


def make_server(
    app: ASGIApp, settings: Settings, log_config: dict[str, Any] | None = None
) -> uvicorn.Server:
    """Create the server for `app`; its `run()` serves until a signal stops it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _DESCRIPTORS:
        wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            ws="none",
            # Overrides uvicorn's own environment variable: settings have one source.
            forwarded_allow_ips=list(settings.trusted_proxies),
            log_config=log_config,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_GRACEFUL_SECONDS,
        )
    )
