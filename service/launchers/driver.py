"""The driver of an attempt: the process that starts its ranks, waits for them, and ends with them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Driver:
    """What a Ray job's driver is given, the same for all submissions of a site.

    By default nothing is reserved for it: it waits while the ranks work, and any share of a CPU would
    keep the last rank from fitting on a cluster with exactly as many CPUs as ranks. Ray then puts it
    on the head; with any reservation, on whichever node has room.
    """

    cpus: float = 0
    memory_bytes: int = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    node_labels: Mapping[str, str] = field(default_factory=dict)
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
