"""One description, two methods: what stands once in `Calls` blocks on `Client` and is awaited on
`AsyncClient`, with the types that each of them has.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from cmcl.flow.api import Api
from cmcl.flow.awaiting import Awaiting
from cmcl.flow.blocking import Blocking
from cmcl.flow.effects import Flow, Items

P = ParamSpec("P")
T = TypeVar("T")


class BlockingSide:
    """Base of `Client`: how its calls are carried out."""

    api: Api
    loop: Blocking


class AwaitingSide:
    """Base of `AsyncClient`: how its calls are carried out."""

    api: Api
    loop: Awaiting


class call(Generic[P, T]):  # noqa: N801 - it stands where a method's name is given
    """A method whose result is one thing."""

    def __init__(self, describe: Callable[Concatenate[Api, P], Flow[T]]) -> None:
        self.describe = describe
        self.__doc__ = describe.__doc__

    @overload
    def __get__(self, client: BlockingSide, kind: type) -> Callable[P, T]: ...

    @overload
    def __get__(self, client: AwaitingSide, kind: type) -> Callable[P, Coroutine[Any, Any, T]]: ...

    @overload
    def __get__(self, client: None, kind: type) -> Callable[Concatenate[Api, P], Flow[T]]: ...

    def __get__(self, client: BlockingSide | AwaitingSide | None, kind: type) -> Callable[..., Any]:
        """The bound method; on the class itself, the description, which has signature and words."""
        if client is None:
            return self.describe

        @wraps(self.describe)
        def bound(*arguments: P.args, **named: P.kwargs) -> T | Coroutine[Any, Any, T]:
            return client.loop.run(self.describe(client.api, *arguments, **named))

        return bound


class listing(Generic[P, T]):  # noqa: N801 - it stands where a method's name is given
    """A method whose result comes one by one."""

    def __init__(self, describe: Callable[Concatenate[Api, P], Items[T]]) -> None:
        self.describe = describe
        self.__doc__ = describe.__doc__

    @overload
    def __get__(self, client: BlockingSide, kind: type) -> Callable[P, Iterator[T]]: ...

    @overload
    def __get__(self, client: AwaitingSide, kind: type) -> Callable[P, AsyncIterator[T]]: ...

    @overload
    def __get__(self, client: None, kind: type) -> Callable[Concatenate[Api, P], Items[T]]: ...

    def __get__(self, client: BlockingSide | AwaitingSide | None, kind: type) -> Callable[..., Any]:
        """The bound method; on the class itself, the description."""
        if client is None:
            return self.describe

        @wraps(self.describe)
        def bound(*arguments: P.args, **named: P.kwargs) -> Iterator[T] | AsyncIterator[T]:
            return client.loop.iterate(self.describe(client.api, *arguments, **named))

        return bound
