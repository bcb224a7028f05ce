"""What the routes of one replica work with; everything that decides is passed in."""

from dataclasses import dataclass, field

from workers.serve.access.port import Doorkeeper
from workers.serve.compute.port import Compute
from workers.serve.encoders.port import Encoders
from workers.serve.http.admission import Admission
from workers.serve.metrics import ServeMetrics
from workers.serve.push.port import Announcer, Unheard
from workers.serve.rollout.trials import Trials
from workers.serve.search.collections import Collections
from workers.serve.settings import ServeArgs
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.lookup import VersionLookup
from workers.storage.object_store import ObjectStore


@dataclass(frozen=True)
class Replica:
    """One of each. Made in `deployment.py`, and by tests without Ray."""

    args: ServeArgs
    store: ObjectStore
    live: LiveVersions
    lookup: VersionLookup
    compute: Compute
    encoders: Encoders
    access: Doorkeeper
    admission: Admission
    metrics: ServeMetrics
    trials: Trials
    announcer: Announcer = field(default_factory=Unheard)
    collections: Collections | None = None
