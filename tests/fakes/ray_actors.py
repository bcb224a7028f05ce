"""Actors of Ray in this process: they answer at once, unless they end or a test silences them."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import ActorDiedError, GetTimeoutError

# Longer than tests wait for anything. Without it a caller that waits without a limit would keep them from ending.
_LONGEST_WAIT = 40.0


class ProcessEnded(BaseException):
    """Raised in a method of an actor: its process ends."""


@dataclass
class Call:
    """The result of a method of an actor, or its error, once it is done."""

    is_done: threading.Event = field(default_factory=threading.Event)
    value: Any = None
    error: BaseException | None = None


class Actors:
    """In place of the module `ray`.

    `is_silent`: whether calls to an actor of this name are never done, as those of one that waits for a node.
    `ends`: how often a process ended.
    """

    def __init__(self) -> None:
        self.alive: dict[str, Actor] = {}
        self.is_silent: Callable[[str], bool] = lambda name: False
        self.silent_calls: list[Call] = []
        self.ends = 0

    def remote(self, made: Callable[..., Any]) -> "_Declared":
        """See ray.remote."""
        return _Declared(self, made)

    def get_actor(self, name: str) -> "Actor":
        """See ray.get_actor."""
        if name not in self.alive:
            raise ValueError(f"Failed to look up actor with name {name!r}")
        return self.alive[name]

    def kill(self, actor: "Actor") -> None:
        """See ray.kill."""
        self.alive.pop(actor.name, None)

    def wait(
        self, calls: list[Call], num_returns: int, timeout: float
    ) -> tuple[list[Call], list[Call]]:
        """See ray.wait. Waits no longer than it takes other threads to run."""
        if sum(call.is_done.is_set() for call in calls) < num_returns:
            calls[0].is_done.wait(min(timeout, 0.01))
        done = [call for call in calls if call.is_done.is_set()][:num_returns]
        return done, [call for call in calls if call not in done]

    def get(self, call: Call, timeout: float | None = None) -> Any:
        """See ray.get."""
        if not call.is_done.wait(_LONGEST_WAIT if timeout is None else timeout):
            assert timeout is not None, "it would wait without end"
            raise GetTimeoutError("the call is not done")
        if call.error is not None:
            raise call.error
        return call.value

    def end_silent_calls(self) -> None:
        """End calls that were never answered, so that no thread waits for them."""
        for call in self.silent_calls:
            call.error = ActorDiedError()
            call.is_done.set()


class Actor:
    """One actor. Its methods are called as those of Ray's: `actor.method.remote(...)`."""

    def __init__(self, actors: Actors, options: dict[str, Any], made: Callable[[], Any]) -> None:
        self.name: str = options["name"]
        self._restarts, self._tries = options["max_restarts"], 1 + options["max_task_retries"]
        self._actors, self._made, self._instance = actors, made, made()

    def __getattr__(self, method: str) -> "_Method":
        return _Method(self, method)

    def call(self, method: str, *arguments: Any) -> Call:
        """Call a method."""
        call = Call()
        if self._actors.is_silent(self.name):
            self._actors.silent_calls.append(call)
            return call
        call.error = ActorDiedError()
        for _ in range(self._tries):
            if self.name in self._actors.alive and self._answer(call, method, arguments):
                break
        call.is_done.set()
        return call

    def _answer(self, call: Call, method: str, arguments: tuple[Any, ...]) -> bool:
        """Return whether the process lived until the method was done."""
        try:
            call.value, call.error = getattr(self._instance, method)(*arguments), None
        except Exception as error:  # noqa: BLE001 - raised by `get`, as Ray does
            call.error = error
        except ProcessEnded:
            self._actors.ends += 1
            self._instance, self._restarts = self._made(), self._restarts - 1
            if self._restarts < 0:
                self._actors.kill(self)
            return False
        return True


@dataclass(frozen=True)
class _Method:
    actor: Actor
    method: str

    def remote(self, *arguments: Any) -> Call:
        return self.actor.call(self.method, *arguments)


@dataclass(frozen=True)
class _Declared:
    actors: Actors
    made: Callable[..., Any]
    given: dict[str, Any] = field(default_factory=dict)

    def options(self, **given: Any) -> "_Declared":
        return _Declared(self.actors, self.made, given)

    def remote(self, *arguments: Any) -> Actor:
        actor = Actor(self.actors, self.given, lambda: self.made(*arguments))
        self.actors.alive[actor.name] = actor
        return actor
