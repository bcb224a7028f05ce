"""One description, two methods: what stands once in `Calls` blocks on `Client` and is awaited on
`AsyncClient`, with the types that each of them has.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import cached_property, wraps
from inspect import Signature, signature
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, get_args, overload

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


class _Described(Generic[P, T]):
    """What both kinds of methods have in common: a description, and how its method looks."""

    def __init__(self, describe: Callable[Concatenate[Api, P], T]) -> None:
        self.describe = describe
        self.__doc__ = describe.__doc__

    @cached_property
    def _seen(self) -> Signature:
        """What a caller sees: without the first argument, which the client gives."""
        whole = signature(self.describe)
        seen = list(whole.parameters.values())[1:]
        return Signature(seen, return_annotation=self._result(whole.return_annotation))

    def _result(self, described: object) -> object:
        """Of the type of a generator, what is of interest to people."""
        return get_args(described)[-1]

    def _method(self, run: Callable[[T], Any], api: Api) -> Callable[..., Any]:
        @wraps(self.describe)
        def bound(*arguments: P.args, **named: P.kwargs) -> Any:
            return run(self.describe(api, *arguments, **named))

        bound.__signature__ = self._seen  # type: ignore[attr-defined]
        return bound


class call(_Described[P, Flow[T]], Generic[P, T]):  # noqa: N801 - it stands where a method's name is given
    """A method whose result is one thing."""

    @overload
    def __get__(self, client: BlockingSide, kind: type) -> Callable[P, T]: ...

    @overload
    def __get__(self, client: AwaitingSide, kind: type) -> Callable[P, Coroutine[Any, Any, T]]: ...

    @overload
    def __get__(self, client: None, kind: type) -> Callable[Concatenate[Api, P], Flow[T]]: ...

    def __get__(self, client: BlockingSide | AwaitingSide | None, kind: type) -> Callable[..., Any]:
        """The method; on the class itself, the description."""
        return self._method(client.loop.run, client.api) if client else self.describe


class listing(_Described[P, Items[T]], Generic[P, T]):  # noqa: N801 - it stands where a method's name is given
    """A method whose results come one by one."""

    def _result(self, described: object) -> object:
        """Not the generator that gives them."""
        return Signature.empty

    @overload
    def __get__(self, client: BlockingSide, kind: type) -> Callable[P, Iterator[T]]: ...

    @overload
    def __get__(self, client: AwaitingSide, kind: type) -> Callable[P, AsyncIterator[T]]: ...

    @overload
    def __get__(self, client: None, kind: type) -> Callable[Concatenate[Api, P], Items[T]]: ...

    def __get__(self, client: BlockingSide | AwaitingSide | None, kind: type) -> Callable[..., Any]:
        """The method; on the class itself, the description."""
        return self._method(client.loop.iterate, client.api) if client else self.describe
