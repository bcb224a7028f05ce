"""The actor that outlives single jobs: it has the reception, and keeps one Ray Train run going.

Jobs come to its socket, or call it from other nodes; ranks call its methods. When it dies its ranks
die with it, and whoever was waiting for it trains without it.
"""

import asyncio
import os
import threading
from os.path import samestat
from pathlib import Path

import ray

from workers.train.warm.desk import Assignment, Retire
from workers.train.warm.reception import Reception
from workers.train.warm.wire import Setup, socket_path

NAME, NAMESPACE = "cmcl-resident", "cmcl"


class Resident:
    """A Ray actor. All that touches the desk runs in its one event loop."""

    def __init__(self, setup: Setup, store_uri: str, idle_seconds: float) -> None:
        """`idle_seconds`: it ends after so long without an attempt, until a job says otherwise."""
        self._setup, self._store_uri = setup, store_uri
        self._reception = Reception(setup, idle_seconds, end=lambda: os._exit(0))
        self._desk = self._reception.desk
        self._server: asyncio.Server | None = None
        self._socket: os.stat_result | None = None
        self._idling: asyncio.Future[None] | None = None
        threading.Thread(target=self._keep_group, daemon=True, name="group").start()

    async def open(self) -> None:
        """Listen, if it does not listen already. Called by every job that had to look for it."""
        path = socket_path(ray.get_runtime_context().gcs_address)
        if self._is_listening_at(path):
            return
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._reception.serve, path)
        self._socket = path.stat()
        self._idling = self._idling or asyncio.ensure_future(self._reception.leave_when_idle())

    async def ask(self, request_line: bytes, told_line: bytes) -> bytes:
        """What became of an attempt whose job cannot come to the socket; it asks again at once."""
        return await self._reception.ask(request_line, told_line)

    async def leave(self, request_line: bytes) -> None:
        """Told by a job that asks no more."""
        self._reception.leave(request_line)

    async def group_started(self) -> None:
        """Told by the leading rank of a new group."""
        self._desk.group_started()
        self._reception.tell()

    async def group_died(self, words: str) -> None:
        """Told by Ray Train's controller, which replaces it."""
        print(f"the ranks died: {words}", flush=True)
        self._desk.group_died(words)
        self._reception.tell()

    async def next(self, after: int) -> Assignment | Retire | None:
        """What a rank that has done number `after` is to do; None: ask again."""
        return await self._reception.until(lambda: self._desk.next(after))

    async def finished(self, number: int) -> None:
        """Told by the leading rank."""
        self._desk.finished(number)
        self._reception.tell()

    async def refused(self, number: int, words: str) -> None:
        """Told by a rank: it would fail alike again."""
        self._desk.refused(number, words)
        self._reception.tell()

    async def stumbled(self, number: int, words: str) -> None:
        """Told by a rank, whose group then ends."""
        self._desk.stumbled(number, words)

    async def is_abandoned(self) -> bool:
        """Whether the ranks work on what nobody wants; answers at once if so."""
        return bool(await self._reception.until(self._desk.is_abandoned))

    def _is_listening_at(self, path: Path) -> bool:
        """Not if somebody cleaned the folder, or made another socket there."""
        return self._socket is not None and path.exists() and samestat(self._socket, path.stat())

    def _keep_group(self) -> None:
        """One group after another, until something is wrong: then this process ends."""
        try:
            # Torch and Ray Train take seconds to import; those who only ask need neither.
            from workers.train.ray_run import Ranks, run_resident_group

            made_of = self._setup
            ranks = Ranks(made_of.ranks, made_of.min_ranks, made_of.gpus_per_rank)
            while True:
                run_resident_group(self._store_uri, ranks)
        finally:
            os._exit(1)
