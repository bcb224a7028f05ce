"""A replica of the embeddings endpoint in virtual time: its threads, its event loop, and requests without a socket."""

import asyncio
import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import CoroutineType
from typing import Any, cast

from starlette.types import Message

from cmcl.storage.object_store import ObjectStore
from tests.faults.virtual_threads import VirtualLoop, VirtualThreads
from tests.faults.virtual_time import VirtualEvent, VirtualTime
from workers.serve.announcements import AnnouncementListener, Channel, ChannelLost
from workers.serve.api import embeddings
from workers.serve.api.context import Admission, Replica
from workers.serve.api.middleware import FastPath, Middleware
from workers.serve.auth import AllowAll
from workers.serve.background import BackgroundExecutor
from workers.serve.batcher import Batcher
from workers.serve.settings import ServeSettings
from workers.serve.telemetry import ServeMetrics
from workers.serve.versions.cache import VersionCache
from workers.serve.versions.follower import Follower, Swapper
from workers.serve.versions.live import LiveVersions, VersionLookup
from workers.serve.versions.loading import StoredVersions

_CALL_SECONDS = 20.0


class VirtualChannel:
    """See Channel: all replicas share it. While `is_lost`, calls fail."""

    def __init__(self, time: VirtualTime) -> None:
        self._time = time
        self._count = 0
        self._news = VirtualEvent(time)
        self.is_lost = False

    def open(self) -> Channel:
        """Open the channel. Raises ChannelLost."""
        self._check()
        return cast("Channel", self)

    def lose(self) -> None:
        """Fail all calls, also those under way."""
        self.is_lost = True
        self._wake()

    def announce(self) -> None:
        self._count += 1
        self._wake()

    def wait(self, seen: int) -> int:
        if self._count == seen:
            self._news.wait(_CALL_SECONDS)
        self._check()
        return self._count

    def _wake(self) -> None:
        self._news.set()
        self._news.clear()

    def _check(self) -> None:
        if self.is_lost:
            raise ChannelLost("the channel is lost (on purpose)")


@dataclass
class Answer:
    """What a client was answered, and when; without a status, it did not wait for it."""

    began: float
    ended: float = math.inf
    status: int | None = None
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    body: Any = None


class VirtualEndpoint:
    """One process of the endpoint, as `app.Embedder` puts it together."""

    def __init__(
        self,
        time: VirtualTime,
        chance: random.Random,
        store: ObjectStore,
        channel: VirtualChannel,
        args: ServeSettings,
        budget: int,
    ) -> None:
        threads = self.threads = VirtualThreads(time, chance)
        metrics = ServeMetrics()
        self.live = LiveVersions(threads)
        self.cache = VersionCache(
            StoredVersions(store), args.recent_versions, budget, metrics, threads=threads
        )
        swapper = Swapper(self.live, self.cache, metrics, threads)
        poll_seconds = args.poll_interval_seconds
        self.follower = Follower(store, self.live, swapper, poll_seconds, threads=threads)
        self.listener = AnnouncementListener(
            self.follower.wake, open_channel=channel.open, threads=threads
        )
        self.admission = Admission(args)
        replica = Replica(
            args=args,
            store=store,
            live=self.live,
            lookup=VersionLookup(self.live, self.cache, args.min_version_wait_seconds),
            batcher=Batcher(metrics, threads),
            background=BackgroundExecutor(threads),
            searches=BackgroundExecutor(threads, 2),
            encoders={},
            access=AllowAll(),
            admission=self.admission,
            metrics=metrics,
            collections=cast("Any", None),
        )
        self.app = Middleware(
            FastPath(cast("Any", None), embeddings.PATH, "POST", embeddings.handler(replica)),
            metrics.finished,
            self.admission.bytes,
        )
        self._asked = set[asyncio.Task[None]]()
        self.loop = VirtualLoop(threads)
        threads.start("loop", self.loop.run_forever)
        self.follower.start()
        self.listener.start()

    def kill(self) -> None:
        """End it as a crash does: what was asked is never answered."""
        self.threads.kill()
        for task in self._asked:
            # Python warns of one that was never begun.
            if not (coroutine := cast("CoroutineType[Any, Any, None]", task.get_coro())).cr_running:
                coroutine.close()

    def announce(self) -> None:
        """Pass on what the control plane has announced."""
        self.loop.call_soon_threadsafe(self.listener.announce)

    def ask(
        self,
        body: Mapping[str, object],
        headers: Mapping[str, str],
        leaves_after: float | None = None,
    ) -> Answer:
        """Send a request. The client may disconnect before it is answered."""
        answer = Answer(self.threads.seconds())

        def begin() -> None:
            task = self.loop.create_task(self._answer(body, headers, answer))
            self._asked.add(task)
            task.add_done_callback(self._asked.discard)
            task.add_done_callback(lambda _: self._end(answer))
            if leaves_after is not None:
                # As Ray Serve does with the request of a client that has disconnected.
                self.loop.call_later(leaves_after, task.cancel)

        self.loop.call_soon_threadsafe(begin)
        return answer

    def _end(self, answer: Answer) -> None:
        answer.ended = self.threads.seconds()

    async def _answer(
        self, body: Mapping[str, object], headers: Mapping[str, str], answer: Answer
    ) -> None:
        pieces: list[bytes] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": json.dumps(body).encode()}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status, answer.headers = message["status"], dict(message["headers"])
            pieces.append(message.get("body", b""))

        given = {"content-type": "application/json", **headers}
        scope = {
            "type": "http",
            "method": "POST",
            "path": embeddings.PATH,
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
            "client": ("127.0.0.1", 1),
        }
        await self.app(scope, receive, send)
        answer.body = json.loads(b"".join(pieces))
