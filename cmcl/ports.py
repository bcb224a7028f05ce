"""Ports on loopback for the parts of a local stack."""

import secrets
import socket
from dataclasses import dataclass

HOST = "127.0.0.1"
# Where neither Linux (32768 on) nor Ray (workers 10002 to 19999, Serve's replicas 30000 on) takes ports
# by itself: any of theirs may be taken again before the process that it is meant for has started.
_PORTS = range(20_000, 30_000)


class StackError(Exception):
    """A part of the local stack cannot start. The message names its log, or the option to change."""


@dataclass(frozen=True)
class Ports:
    """Ports on loopback."""

    service: int
    embeddings: int
    ray: int
    ray_client: int
    dashboard: int
    proxy_metrics: int
    proxy_stats: int
    proxy_fallback: int

    @classmethod
    def free(cls, service: int = 0, embeddings: int = 0) -> "Ports":
        """Free ports; those that are given are checked instead. Raises StackError if taken."""
        if service and service == embeddings:
            raise StackError(f"port {service} is given twice; the two endpoints need one each")
        sockets = [_bound(port) if port else _any() for port in (service, embeddings, *[0] * 6)]
        numbers = [held.getsockname()[1] for held in sockets]
        for held in sockets:
            held.close()
        return cls(*numbers)


def _bound(port: int) -> socket.socket:
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((HOST, port))
    except OSError as error:
        held.close()
        raise StackError(
            f"port {port} cannot be used ({error.strerror}); choose another one"
        ) from error
    return held


def _any() -> socket.socket:
    for _ in range(len(_PORTS)):
        try:
            return _bound(secrets.choice(_PORTS))
        except StackError:
            continue
    raise StackError(
        f"no port from {_PORTS.start} to {_PORTS.stop - 1} is free; end what holds them"
    )
