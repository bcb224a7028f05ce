"""The attacking process: connections from its own source address, and the window of an attack.

An attack is a coroutine function of one `Attacker`. Code before `run_concurrently` prepares the attack,
`run_concurrently` runs it for the whole window, and code after it cleans up.
"""

import asyncio
import itertools
import multiprocessing
import resource
import socket
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.isolation.connections import HeldConnections, bound_socket, read_answer

Act = Callable[[int], Awaitable[None]]
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

READY, GO, OVER = "ready", "go", "over"
MEBIBYTE = 1 << 20
_SPAWN = multiprocessing.get_context("spawn")
# Descriptors that are not connections of an attack: pipes, libraries, the client of the
# preparation.
_SPARE_DESCRIPTORS = 256
# Pause between two bytes of a client that resembles a slow one.
DRIP_SECONDS = 5.0
_RETRY_SECONDS = 0.05
_KEY_SECONDS = 15.0
_CLEANUP_AT_ONCE = 32
_CONNECTION_ERRORS = (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)


@dataclass(frozen=True)
class Target:
    """Target and means of an attack.

    `keys`: keys of one owner by scope; `admin` has all scopes. `model`: a model of the same
    owner with a live version. `widths`: feature widths of its modalities. `prefix`: a permitted
    address of shards. `scale`: factor for the connections of each attack. `source`: source
    address of connections.
    """

    service: str
    endpoint: str
    keys: Mapping[str, str]
    model: str
    widths: Mapping[str, int]
    prefix: str
    seconds: float
    scale: float = 1.0
    source: str = "127.0.0.2"


class Attacker:
    """Connections, requests and counters of one attack. `counts` is part of the result."""

    def __init__(self, target: Target, pipe: Connection) -> None:
        self.target = target
        self.counts: Counter[str] = Counter()
        self._pipe = pipe
        self._open = 0
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_DESCRIPTORS
        self._made: list[tuple[str, str]] = []

    def many(self, number: int) -> int:
        """Return `number` scaled, at least 1 and within the descriptor limit."""
        return max(1, min(round(number * self.target.scale), self._most))

    async def run_concurrently(self, number: int, act: Act) -> None:
        """Run `act(0)`, `act(1)`, ... concurrently for the window, and restart each when it ends.

        Closed connections are counted, and `act` is called again after a short pause. Any
        other exception ends the attack and is raised.
        """
        loop = asyncio.get_running_loop()
        self._pipe.send(READY)
        assert await loop.run_in_executor(None, self._pipe.recv) == GO
        tasks = [asyncio.create_task(self._again(act, n)) for n in range(self.many(number))]
        try:
            ended, _ = await asyncio.wait(
                tasks, timeout=self.target.seconds, return_when=asyncio.FIRST_EXCEPTION
            )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in ended:
            task.result()
        self._pipe.send(OVER)

    async def _again(self, act: Act, number: int) -> None:
        while True:
            try:
                await act(number)
            except (*_CONNECTION_ERRORS, httpx.HTTPError) as error:
                self.counts[type(error).__name__] += 1
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                await asyncio.sleep(0)

    @asynccontextmanager
    async def connection(self, url: str, *, reads: bool = True) -> AsyncIterator[Stream]:
        """Open a connection, aborted at the end. With `reads` false, responses stay in the kernel's
        buffers."""
        place = urlsplit(url)
        made = bound_socket(self.target.source)
        try:
            if not reads:
                # Before connecting, because it determines the advertised receive window.
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await asyncio.get_running_loop().sock_connect(made, (place.hostname, place.port))
            reader, writer = await asyncio.open_connection(sock=made)
        except BaseException:
            made.close()
            raise
        if not reads:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
        self._open += 1
        self.counts["connections"] += 1
        self.counts["most at once"] = max(self.counts["most at once"], self._open)
        try:
            yield reader, writer
        finally:
            self._open -= 1
            writer.transport.abort()

    async def send_repeatedly(self, writer: asyncio.StreamWriter, piece: bytes, size: int) -> None:
        """Send `piece` repeatedly, `size` bytes in total. Raises OSError when the connection is
        cut."""
        for _ in range(0, size, len(piece)):
            writer.write(piece)
            await writer.drain()
            self.counts["bytes"] += len(piece)
            # `drain` does not wait while the kernel accepts everything; yield to other tasks.
            await asyncio.sleep(0)

    async def flood(self, url: str, *requests: bytes) -> None:
        """Send these requests repeatedly on one connection, and read each response."""
        async with self.connection(url) as (reader, writer):
            for request in itertools.cycle(requests):
                writer.write(request)
                await writer.drain()
                self.counts[str(await read_answer(reader))] += 1

    async def hold(self, url: str, data: bytes, drip: bytes = b"") -> None:
        """Send `data`, then `drip` every few seconds, until the other side closes."""
        async with self.connection(url) as (reader, writer):
            writer.write(data)
            await writer.drain()
            while True:
                try:
                    async with asyncio.timeout(DRIP_SECONDS):
                        if not await reader.read(1 << 16):
                            self.counts["closed by the other side"] += 1
                            return
                except TimeoutError:
                    writer.write(drip)
                    await writer.drain()

    async def hold_many(self, url: str, number: int, data: bytes, drip: bytes = b"") -> None:
        """Hold `number` connections for the window, as `hold` does, each with little data."""
        place = urlsplit(url)
        many = self.many(number)

        async def act(_: int) -> None:
            where = (str(place.hostname), place.port or 80)
            with HeldConnections(where, self.target.source, data, drip, DRIP_SECONDS) as held:
                await held.keep(many, self.counts)

        await self.run_concurrently(1, act)

    async def leave_unread(self, url: str, data: bytes, seconds: float) -> None:
        """Send a request, read nothing for `seconds`, then repeat on another connection."""
        async with self.connection(url, reads=False) as (_, writer):
            writer.write(data)
            await writer.drain()
            self.counts["left unread"] += 1
            await asyncio.sleep(seconds)

    @asynccontextmanager
    async def client(self, url: str, scope: str) -> AsyncIterator[httpx.AsyncClient]:
        """An HTTP client with one of the attacker's keys, for well-formed requests."""
        transport = httpx.AsyncHTTPTransport(
            limits=httpx.Limits(max_connections=None),
            local_address=self.target.source,
        )
        headers = {"authorization": f"Bearer {self.target.keys[scope]}"}
        async with httpx.AsyncClient(
            base_url=url, headers=headers, transport=transport, timeout=60, trust_env=False
        ) as made:
            yield made

    async def mint(self, number: int, scopes: Sequence[str]) -> list[str]:
        """Create up to `number` keys of the same owner, which `remove_made` revokes. If they may
        embed, return after the endpoint accepts the last one."""
        keys: list[str] = []
        async with self.client(self.target.service, "admin") as client:
            for each in range(number):
                answer = await client.post(
                    "/v1/keys", json={"name": f"minted-{each}", "scopes": list(scopes)}
                )
                if answer.is_error:
                    self.counts[f"keys refused, {answer.status_code}"] += 1
                    break
                keys.append(answer.json()["key"])
                self.made("admin", f"/v1/keys/{answer.json()['id']}")
        if not keys:
            keys = [self.target.keys["admin"]]
        if "embed" in scopes:
            await self._await_key(keys[-1])
        return keys

    async def _await_key(self, key: str) -> None:
        async with (
            asyncio.timeout(_KEY_SECONDS),
            self.client(self.target.endpoint, "embed") as client,
        ):
            headers = {"authorization": f"Bearer {key}"}
            while (await client.get("/v1/models", headers=headers)).is_error:
                await asyncio.sleep(0.2)

    def made(self, scope: str, path: str) -> None:
        """Register a resource of the service that `remove_made` deletes with this key."""
        self._made.append((scope, path))

    async def remove_made(self) -> None:
        """Delete all registered resources, and count those that cannot be deleted."""
        paths = iter(self._made)
        async with self.client(self.target.service, "admin") as client:
            await asyncio.gather(*(self._remove(client, paths) for _ in range(_CLEANUP_AT_ONCE)))

    async def _remove(self, client: httpx.AsyncClient, paths: Iterable[tuple[str, str]]) -> None:
        for scope, path in paths:
            headers = {"authorization": f"Bearer {self.target.keys[scope]}"}
            try:
                answer = await client.delete(path, headers=headers)
            except httpx.HTTPError:
                self.counts["not deleted"] += 1
            else:
                self.counts["not deleted"] += answer.is_error


AttackFunction = Callable[[Attacker], Awaitable[None]]


class AttackFailed(Exception):
    """The attack could not be prepared or run, so nothing was tested."""


class AttackProcess:
    """An attack in a separate process, which waits between preparation and attack."""

    def __init__(self, attack: AttackFunction, target: Target) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_run, args=(attack, target, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def prepare(self, seconds: float) -> None:
        """Wait for the end of the preparation. Raises AttackFailed."""
        self._expect(READY, seconds)

    def go(self) -> None:
        """Begin the attack."""
        self._pipe.send(GO)

    def wait(self, seconds: float) -> None:
        """Wait until its connections are closed. Raises AttackFailed."""
        self._expect(OVER, seconds)

    def counts(self, seconds: float) -> dict[str, int]:
        """Return the counters after cleanup. Raises AttackFailed."""
        found: dict[str, int] = self._receive(seconds)
        return found

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _expect(self, word: str, seconds: float) -> None:
        found = self._receive(seconds)
        if found != word:
            raise AttackFailed(f"the attack sent {found!r} instead of {word!r}")

    def _receive(self, seconds: float) -> Any:
        if not self._pipe.poll(seconds):
            raise AttackFailed(f"the attack did not respond within {seconds:g} s")
        try:
            found = self._pipe.recv()
        except EOFError:
            raise AttackFailed("the process of the attack ended") from None
        if isinstance(found, Exception):
            raise AttackFailed(str(found))
        return found


def _run(attack: AttackFunction, target: Target, pipe: Connection) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    attacker = Attacker(target, pipe)
    try:
        asyncio.run(_attack(attack, attacker))
        pipe.send({name: number for name, number in attacker.counts.items() if number})
    except Exception:  # noqa: BLE001 - the parent reports it
        pipe.send(AttackFailed(traceback.format_exc(limit=-3)))


async def _attack(attack: AttackFunction, attacker: Attacker) -> None:
    try:
        await attack(attacker)
    finally:
        await attacker.remove_made()
