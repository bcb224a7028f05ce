"""How much a replica takes on at once, and how much of it one tenant may hold.

Counted in requests, rows and bytes: a request of 4096 rows is not one of 1 row, and a request that waits
(for its body, for a version) holds neither rows nor many bytes. All of them count until the response has been
sent (`middleware.py`), so that responses which are not read are bounded, too.
"""

from contextlib import AbstractContextManager, nullcontext

from starlette.requests import Request
from starlette.types import Scope

from workers.serve.errors import InvalidRequest
from workers.serve.quota import Quota
from workers.serve.settings import ServeArgs

_HOLDING = "cmcl.holding"


class Admission:
    """The quotas of one replica: requests, rows that are embedded, bytes of bodies and responses, exports, and
    items at each encoder, by its name.

    An export keeps a whole index in memory until its last byte is taken.
    """

    def __init__(self, args: ServeArgs) -> None:
        self.requests = Quota(args.max_requests_in_flight, "requests")
        self.rows = Quota(args.max_rows_in_flight, "rows")
        self.exports = Quota(args.max_exports, "exports")
        self.bytes = Quota(args.max_bytes_in_flight, "bytes of bodies and responses")
        self.encoders = {
            spec.name: Quota(spec.max_queued, f"items at encoder {spec.name!r}")
            for spec in args.encoders
        }

    def at_encoder(self, name: str, tenant: str, items: int) -> AbstractContextManager[None]:
        """Context manager that counts items while they are encoded. Entering it raises Overloaded."""
        quota = self.encoders.get(name)
        return nullcontext() if quota is None else quota.held(tenant, items)


class Holding:
    """What one request holds of each quota. A request has one tenant."""

    def __init__(self) -> None:
        self._tenant = ""
        self._held: dict[Quota, int] = {}

    def add(self, quota: Quota, tenant: str, amount: int) -> None:
        """Note what was taken of this quota."""
        self._tenant = tenant
        self._held[quota] = self._held.get(quota, 0) + amount

    def exchange(self, quota: Quota, amount: int) -> None:
        """Hold `amount` of this quota in place of what is held of it."""
        before = self._held.get(quota)
        if before is not None:
            quota.exchange(self._tenant, before, amount)
            self._held[quota] = amount

    def release(self) -> None:
        """Give everything back."""
        for quota, amount in self._held.items():
            quota.release(self._tenant, amount)


def hold_for(scope: Scope) -> Holding:
    """Begin to note what the request of this scope holds."""
    holding = scope[_HOLDING] = Holding()
    return holding


def hold_until_sent(request: Request, quota: Quota, tenant: str, amount: int) -> None:
    """Count an amount until the response has been sent, or the request has failed. Raises Overloaded."""
    quota.take(tenant, amount)
    holding: Holding = request.scope[_HOLDING]
    holding.add(quota, tenant, amount)


def hold_answer(request: Request, quota: Quota, tenant: str, size: int) -> None:
    """Count a response of about so many bytes before it is made. Raises Overloaded, InvalidRequest."""
    if size > quota.share_of_one:
        raise InvalidRequest(
            f"the response would have about {size} bytes; permitted are {quota.share_of_one}: send fewer "
            "rows in one request, or ask for encoding_format base64 or for raw bytes",
            "input",
            "answer_too_large",
        )
    hold_until_sent(request, quota, tenant, size)
