"""The series that a control plane and a replica export, with their labels."""

from pathlib import Path

from tests.unit.service.telemetry.samples import every_family, labels_of
from workers.serve.telemetry import SERIES

# What Ray adds to every series.
RAY_LABELS = {"worker"}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "info": ("_info",)}


def all_series(folder: Path) -> dict[str, set[str]]:
    """The labels of every series by its name. `folder`: for a control plane."""
    return serving_series() | {
        f"{family.name}{suffix}": labels_of(family)
        for family in every_family(folder)
        for suffix in SUFFIXES.get(family.type, ("",))
    }


def serving_series() -> dict[str, set[str]]:
    """The labels of every series of a replica by its name."""
    return {
        f"ray_cmcl_serve_{each.name}{suffix}": {*each.labels} | RAY_LABELS
        for each in SERIES
        for suffix in (SUFFIXES["histogram"] if each.kind == "histogram" else ("",))
    }
