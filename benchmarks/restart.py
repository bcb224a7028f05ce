"""How long does the service take to start with many models, and what does a long history cost the intake?

`python -m benchmarks.restart` fills a database and a store with models that have a live version, and with jobs that have
ended; starts the service on them, and measures the time from the start of its process until /readyz has status 200, and
then how many datasets it accepts. Beside it in the same run, the same on an empty database.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from benchmarks.command_line import OneLineParser, count, log_progress
from benchmarks.control.backlog import SPEC, write_jobs
from benchmarks.control.databases import NAMES, fresh_database
from benchmarks.control.intake import add_model, over_http, running_service
from cmcl.contract.api.jobs import JobState
from cmcl.contract.model import Gate
from cmcl.contract.version import LivePointer
from cmcl.storage import layout
from service.core.principal import DEFAULT_OWNER
from service.database.engine import Database, open_database
from service.database.migrations import upgrade
from service.database.queries import models as model_queries
from service.database.tables import models

_CHUNK = 1000
_CLIENTS = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both. The last line is one JSON document."""
    options = _parser().parse_args(arguments)
    found = {
        "full": measure(options.database, options.models, options.finished, options.seconds),
        "empty": measure(options.database, 0, 0, options.seconds),
    }
    print(json.dumps({"database": options.database, **found}), flush=True)
    return 0


def measure(database: str, number: int, finished: int, seconds: float) -> dict[str, Any]:
    """Return the seconds until the service is ready, and what it accepts."""
    with tempfile.TemporaryDirectory() as name, fresh_database(database, Path(name)) as url:
        folder = Path(name)
        log_progress(f"writing {number} models with pointers, {finished} jobs that have ended")
        _fill(url, folder / "store", number, finished)
        log_progress("starting the service")
        began = time.monotonic()
        with running_service(url, folder, until="/readyz") as address:
            ready = time.monotonic() - began
            log_progress(f"ready after {ready:.1f} s; posting")
            accepted = over_http(address, seconds, _CLIENTS)
    return {"models": number, "finished": finished, "ready_s": round(ready, 2), **accepted}


def _fill(url: str, store: Path, number: int, finished: int) -> None:
    now = datetime.now(UTC)
    database = open_database(url)
    upgrade(database)
    add_model(database, now)
    with database.write() as connection:
        model_queries.create(connection, "backlog", DEFAULT_OWNER, SPEC, now)
    _write_models(database, store, number, now)
    write_jobs(database, range(finished), JobState.PUBLISHED)
    database.close()


def _write_models(database: Database, store: Path, number: int, now: datetime) -> None:
    """Models whose live.json is what the database says."""
    live = {"head": 1, "live_version": 1, "live_generation": 1}
    live |= {"live_revision": 1, "written_revision": 1}
    pointer = LivePointer(generation=1, version=1, revision=1, owner=DEFAULT_OWNER)
    content = pointer.model_dump_json()
    for start in range(0, number, _CHUNK):
        some = range(start, min(start + _CHUNK, number))
        rows = [{**_model(each, now), **live} for each in some]
        with database.write() as connection:
            connection.execute(insert(models), rows)
        for row in rows:
            path = store / layout.live_pointer(row["name"])
            path.parent.mkdir(parents=True)
            path.write_text(content)


def _model(number: int, now: datetime) -> dict[str, Any]:
    return {
        "name": f"m{number:05d}",
        "owner": DEFAULT_OWNER,
        "spec": SPEC.model_dump(mode="json"),
        "gate": Gate().model_dump(mode="json"),
        "gate_revision": 1,
        "encoders": {},
        "created_at": now,
    }


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.restart", description=__doc__)
    parser.add_argument("--models", type=count, default=10_000, help="(default: 10000)")
    parser.add_argument("--finished", type=count, default=100_000, help="jobs (default: 100000)")
    parser.add_argument("--seconds", type=count, default=10, help="of posting (default: 10)")
    parser.add_argument("--database", choices=NAMES, default="sqlite", help="(default: sqlite)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
