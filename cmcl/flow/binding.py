"""Methods of both clients from one description.

A call is described once, as a generator (`cmcl.calls`). Read from `Client` or from one of its
objects it is a function that blocks, from `AsyncClient` one that is awaited. Both are ordinary
functions with the signature and the docstring of the description, so `help`, `inspect.signature`
and editors show what a caller gives and gets; type checkers see the same in the overloads.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import cached_property
from inspect import Parameter, Signature, signature
from types import FunctionType, MethodType
from typing import (
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    TypeVar,
    cast,
    get_args,
    get_origin,
    overload,
)

from cmcl.flow.api import Api
from cmcl.flow.awaiting import Awaiting
from cmcl.flow.blocking import Blocking
from cmcl.flow.effects import Flow, Item, Items

P = ParamSpec("P")
T = TypeVar("T")
Method = Callable[..., Any]


class BlockingSide:
    """Base of `Client`: its calls are carried out by `loop`."""

    api: Api
    loop: Blocking


class AwaitingSide:
    """Base of `AsyncClient`: its calls are carried out by `loop`."""

    api: Api
    loop: Awaiting


class _Described(ABC):
    """A description, and the two functions that are made of it."""

    _name = ""

    def __init__(self, describe: Callable[..., Any]) -> None:
        self.describe = describe
        self.__doc__ = describe.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @property
    @abstractmethod
    def _blocking(self) -> Method: ...

    @property
    @abstractmethod
    def _awaited(self) -> Method: ...

    def _of(self, client: BlockingSide | AwaitingSide | None, owner: type) -> Method:
        """The method of `client`; read from the class, the function."""
        made = self._awaited if issubclass(owner, AwaitingSide) else self._blocking
        return made if client is None else MethodType(made, client)

    def _presented(self, function: Method, owner: str, result: object) -> Method:
        """`function`, with the name, the docstring and the signature that a caller sees."""
        whole = signature(self.describe)
        # The first one is the Api, which the client gives.
        given = list(whole.parameters.values())[1:]
        client = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
        annotations = {each.name: each.annotation for each in given}
        made = cast("FunctionType", function)
        made.__name__, made.__qualname__ = self._name, f"{owner}.{self._name}"
        made.__module__, made.__doc__ = "cmcl.client", self.describe.__doc__
        made.__annotations__ = {**annotations, "return": result}
        made.__signature__ = Signature([client, *given], return_annotation=result)  # type: ignore[attr-defined]
        return made


class call(_Described, Generic[P, T]):  # noqa: N801 - it stands where a method's name is given
    """A method whose result is one thing."""

    def __init__(self, describe: Callable[Concatenate[Api, P], Flow[T]]) -> None:
        super().__init__(describe)

    @cached_property
    def _blocking(self) -> Method:
        def method(client: BlockingSide, *arguments: Any, **named: Any) -> Any:
            return client.loop.run(self.describe(client.api, *arguments, **named))

        return self._presented(method, "Client", self._result)

    @cached_property
    def _awaited(self) -> Method:
        async def method(client: AwaitingSide, *arguments: Any, **named: Any) -> Any:
            return await client.loop.run(self.describe(client.api, *arguments, **named))

        return self._presented(method, "AsyncClient", self._result)

    @property
    def _result(self) -> object:
        """`T` of the description's `Flow[T]`, which is a Generator[Effect, Any, T]."""
        return get_args(signature(self.describe).return_annotation)[-1]

    @overload
    def __get__(self, client: BlockingSide, owner: type) -> Callable[P, T]: ...

    @overload
    def __get__(self, client: AwaitingSide, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...

    @overload
    def __get__(
        self, client: None, owner: type[BlockingSide]
    ) -> Callable[Concatenate[BlockingSide, P], T]: ...

    @overload
    def __get__(
        self, client: None, owner: type[AwaitingSide]
    ) -> Callable[Concatenate[AwaitingSide, P], Coroutine[Any, Any, T]]: ...

    def __get__(self, client: BlockingSide | AwaitingSide | None, owner: type) -> Method:
        """The method; read from the class, the function."""
        return self._of(client, owner)


class listing(_Described, Generic[P, T]):  # noqa: N801 - it stands where a method's name is given
    """A method whose results come one by one."""

    def __init__(self, describe: Callable[Concatenate[Api, P], Items[T]]) -> None:
        super().__init__(describe)

    @cached_property
    def _blocking(self) -> Method:
        def method(client: BlockingSide, *arguments: Any, **named: Any) -> Iterator[Any]:
            return client.loop.iterate(self.describe(client.api, *arguments, **named))

        return self._presented(method, "Client", Iterator[self._item])  # type: ignore[name-defined]

    @cached_property
    def _awaited(self) -> Method:
        def method(client: AwaitingSide, *arguments: Any, **named: Any) -> AsyncIterator[Any]:
            return client.loop.iterate(self.describe(client.api, *arguments, **named))

        return self._presented(method, "AsyncClient", AsyncIterator[self._item])  # type: ignore[name-defined]

    @property
    def _item(self) -> object:
        """`T` of the description's `Items[T]`, which is a Generator[Effect | Item[T], Any, None]."""
        yielded = get_args(get_args(signature(self.describe).return_annotation)[0])
        (item,) = (get_args(each)[0] for each in yielded if get_origin(each) is Item)
        return cast("object", item)

    @overload
    def __get__(self, client: BlockingSide, owner: type) -> Callable[P, Iterator[T]]: ...

    @overload
    def __get__(self, client: AwaitingSide, owner: type) -> Callable[P, AsyncIterator[T]]: ...

    @overload
    def __get__(
        self, client: None, owner: type[BlockingSide]
    ) -> Callable[Concatenate[BlockingSide, P], Iterator[T]]: ...

    @overload
    def __get__(
        self, client: None, owner: type[AwaitingSide]
    ) -> Callable[Concatenate[AwaitingSide, P], AsyncIterator[T]]: ...

    def __get__(self, client: BlockingSide | AwaitingSide | None, owner: type) -> Method:
        """The method; read from the class, the function."""
        return self._of(client, owner)
