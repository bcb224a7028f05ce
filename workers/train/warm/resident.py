"""The actor that outlives single jobs: it has the desk, and keeps one Ray Train run going.

Jobs come to its socket, ranks call its methods. When it dies its ranks die with it, and whoever was
waiting for it trains without it.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from os.path import samestat
from pathlib import Path
from typing import Any, TypeVar

import ray

from workers.train.warm.desk import Answer, Assignment, Desk, Retire
from workers.train.warm.wire import Request, Setup, answer_to_line, socket_path

NAME, NAMESPACE = "cmcl-resident", "cmcl"
# The longest that a rank's call waits for news; it calls again.
_RANK_SECONDS = 10.0
_LEAVING_SECONDS = 0.2
_IDLE_LOOK_SECONDS = 1.0

T = TypeVar("T")


class Resident:
    """A Ray actor. All that touches the desk runs in its one event loop."""

    def __init__(self, setup: Setup, store_uri: str, idle_seconds: float) -> None:
        """`idle_seconds`: it ends after so long without an attempt, until a job says otherwise."""
        self._setup, self._store_uri = setup, store_uri
        self._idle_seconds = idle_seconds
        self._desk = Desk()
        self._news = asyncio.Event()
        self._is_leaving = False
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
        self._server = await asyncio.start_unix_server(self._serve_job, path)
        self._socket = path.stat()
        self._idling = self._idling or asyncio.ensure_future(self._leave_when_idle())

    async def group_started(self) -> None:
        """Told by the leading rank of a new group."""
        self._desk.group_started()
        self._tell()

    async def group_died(self, words: str) -> None:
        """Told by Ray Train's controller, which replaces it."""
        print(f"the ranks died: {words}", flush=True)
        self._desk.group_died(words)
        self._tell()

    async def next(self, after: int) -> Assignment | Retire | None:
        """What a rank that has done number `after` is to do; None: ask again."""
        return await self._until(lambda: self._desk.next(after))

    async def finished(self, number: int) -> None:
        """Told by the leading rank."""
        self._desk.finished(number)
        self._tell()

    async def refused(self, number: int, words: str) -> None:
        """Told by a rank: it would fail alike again."""
        self._desk.refused(number, words)
        self._tell()

    async def stumbled(self, number: int, words: str) -> None:
        """Told by a rank, whose group then ends."""
        self._desk.stumbled(number, words)

    async def is_abandoned(self) -> bool:
        """Whether the ranks work on what nobody wants; answers at once if so."""
        return bool(await self._until(self._desk.is_abandoned))

    async def _serve_job(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One job, from its request to its answer or its end."""
        gone = None
        try:
            request = Request.from_line(await reader.readline())
            gone = asyncio.ensure_future(reader.read())
            await self._answer(request, writer, gone)
        except (ValueError, TypeError, KeyError) as error:
            print(f"a job of other code is not served: {error!r}", flush=True)
            self._make_room()
        except ConnectionError:
            pass  # The job has gone, which is known by now.
        finally:
            if gone is not None:
                gone.cancel()
            writer.close()

    async def _answer(
        self, request: Request, writer: asyncio.StreamWriter, gone: "asyncio.Future[bytes]"
    ) -> None:
        if self._is_leaving or request.setup != self._setup:
            await _send(writer, Answer("elsewhere"))
            self._make_room()
            return
        self._idle_seconds = request.idle_seconds
        self._desk.join(request.attempt, request.priority)
        self._tell()
        try:
            await self._follow(request, writer, gone)
        finally:
            self._desk.leave(request.attempt)
            self._tell()

    async def _follow(
        self, request: Request, writer: asyncio.StreamWriter, gone: "asyncio.Future[bytes]"
    ) -> None:
        """Tell every change until there is nothing more to tell, or nobody to tell it to."""
        told: Answer | None = None
        while not gone.done() and not (told and told.is_final):
            answer = self._desk.answer(request.attempt)
            if answer != told:
                await _send(writer, answer)
                told = answer
                continue
            news = asyncio.ensure_future(self._news.wait())
            either: list[asyncio.Future[Any]] = [news, gone]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()

    async def _until(self, look: Callable[[], T | None]) -> T | None:
        """What `look` finds, as soon as it finds anything; else None."""
        deadline = time.monotonic() + _RANK_SECONDS
        while not (found := look()):
            try:
                await asyncio.wait_for(self._news.wait(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return None
        return found

    def _tell(self) -> None:
        """Wake everybody who waits for news."""
        self._news.set()
        self._news = asyncio.Event()
        self._leave_if_idle()

    def _is_listening_at(self, path: Path) -> bool:
        """Not if somebody cleaned the folder, or made another socket there."""
        return self._socket is not None and path.exists() and samestat(self._socket, path.stat())

    def _make_room(self) -> None:
        """Another group is wanted: serve those who are in line, and end."""
        self._is_leaving = True
        self._leave_if_idle()

    def _leave_if_idle(self) -> None:
        if self._is_leaving and self._desk.is_empty:
            # Later, so that the answers that are under way arrive.
            asyncio.get_running_loop().call_later(_LEAVING_SECONDS, self._end)

    def _end(self) -> None:
        """Who came before it was decided is served first."""
        if self._desk.is_empty:
            os._exit(0)

    async def _leave_when_idle(self) -> None:
        """What the ranks hold goes back to the cluster, whose autoscaler takes nodes away."""
        while not self._is_idle():
            await asyncio.sleep(_IDLE_LOOK_SECONDS)
        print(f"no attempt came for {self._idle_seconds:g} s: the ranks leave", flush=True)
        self._make_room()

    def _is_idle(self) -> bool:
        return 0 < self._idle_seconds <= self._desk.idle_seconds

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


async def _send(writer: asyncio.StreamWriter, answer: Answer) -> None:
    writer.write(answer_to_line(answer))
    await writer.drain()
