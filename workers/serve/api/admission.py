"""How much a replica takes on at once, and how much of it one tenant may hold.

Counted in requests, rows and bytes: a request of 4096 rows is not one of 1 row, and a request that waits
(for its body, for a version) holds neither rows nor many bytes. All of them count until the answer has
left (`until_sent`), so that answers which are not read are bounded, too.
"""

from contextlib import AbstractContextManager, nullcontext

from workers.serve.quota import Quota
from workers.serve.settings import ServeArgs


class Admission:
    """What one replica takes on: requests, rows that are embedded, bytes of bodies and answers, exports,
    and items at each encoder, by its modality.

    An export keeps a whole index in memory until its last byte is taken.
    """

    def __init__(self, args: ServeArgs) -> None:
        self.requests = Quota(args.max_requests_in_flight, "requests")
        self.rows = Quota(args.max_rows_in_flight, "rows")
        self.exports = Quota(args.max_exports, "exports")
        self.bytes = Quota(args.max_bytes_in_flight, "bytes of bodies and answers")
        self.encoders = {
            spec.modality: Quota(spec.max_queued, f"items at the encoder of {spec.modality!r}")
            for spec in args.encoders
        }

    def at_encoder(self, modality: str, tenant: str, items: int) -> AbstractContextManager[None]:
        """Counts items while they are encoded. Entering it raises Overloaded if they are too many."""
        quota = self.encoders.get(modality)
        return nullcontext() if quota is None else quota.held(tenant, items)
