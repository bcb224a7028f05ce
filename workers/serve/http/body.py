"""Reading what a client sends: no more than permitted, not for ever, and counted while it is held."""

import asyncio

from starlette.requests import Request

from workers.serve.errors import BodyTimeout, BodyTooLarge
from workers.serve.http.admission import Admission
from workers.serve.settings import ServeArgs


def held_body(request: Request, args: ServeArgs, admission: Admission, key: str) -> "_HeldBody":
    """The whole body. It and its request are counted until the block ends.

    Entering it raises BodyTooLarge, BodyTimeout, Overloaded and ClientDisconnect.
    """
    return _HeldBody(request, args, admission, key)


class _HeldBody:
    """A class and no generator, as every request passes here."""

    def __init__(self, request: Request, args: ServeArgs, admission: Admission, key: str) -> None:
        self._request = request
        self._args = args
        self._admission = admission
        self._key = key
        self._counted = 0

    async def __aenter__(self) -> bytes:
        declared = self._declared()
        self._admission.requests.take(self._key, 1)
        body = bytearray()
        try:
            self._count(declared)
            async with asyncio.timeout(self._args.body_seconds):
                async for chunk in self._request.stream():
                    body += chunk
                    if not declared:  # It comes in chunks, so nobody knows how many.
                        self._check_size(len(body))
                        self._count(len(chunk))
        except TimeoutError as error:
            self._give_back()
            raise BodyTimeout(
                f"{len(body)} bytes of the body came in {self._args.body_seconds:g} s, and then no "
                "end"
            ) from error
        except BaseException:
            self._give_back()
            raise
        return bytes(body)

    async def __aexit__(self, *_: object) -> None:
        self._give_back()

    def _declared(self) -> int:
        text = self._request.headers.get("content-length", "").lstrip("0")
        if not text.isdecimal():
            return 0
        # By its length first: int() raises ValueError for thousands of digits.
        most = self._args.max_body_bytes
        if len(text) > len(str(most)) or int(text) > most:
            raise BodyTooLarge(f"the body has {text[:20]} bytes; permitted are {most}")
        return int(text)

    def _check_size(self, size: int) -> None:
        limit = self._args.max_body_bytes
        if size > limit:
            raise BodyTooLarge(f"the body has more than {limit} bytes, which is what is permitted")

    def _count(self, size: int) -> None:
        self._admission.bytes.take(self._key, size)
        self._counted += size

    def _give_back(self) -> None:
        self._admission.requests.give_back(self._key, 1)
        self._admission.bytes.give_back(self._key, self._counted)
