"""The versions of a model, for the scripts beside this: those that exist, oldest first, and then each new one.

The event stream says when there is a new one. The control plane is that of CMCL_URL, with the key in CMCL_KEY.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cmcl import Client
from cmcl.client import Model, Version
from cmcl.pictures import arranged, version_pictures

URL = os.environ.get("CMCL_URL", "http://127.0.0.1:8000")


@dataclass(frozen=True)
class Published:
    """A version to write."""

    model: Model
    version: Version

    @property
    def name(self) -> str:
        """`model@version`."""
        return f"{self.model.name}@{self.version.version}"

    def metrics(self) -> dict[str, float]:
        """Recall, drift, loss and free shares, by name. Datasets have their names."""
        report = self.version.report
        names = _unique((line.dataset, line.name) for line in self.version.lineage)
        found: dict[str, float] = {"final_loss": report.final_loss}
        for dataset, recall in report.evaluation.items():
            found[f"recall_at_1/{names[dataset]}"] = recall.at_1
            found[f"recall_at_10/{names[dataset]}"] = recall.at_10
        for dataset, drift in report.drift.items():
            found[f"drift/{names[dataset]}"] = drift.since_learned
            found[f"drift_against_parent/{names[dataset]}"] = drift.against_parent
        for dataset, quality in report.quality.items():
            found[f"quality/{names[dataset]}"] = quality.now
        only = _unique((each.dataset, each.name) for each in report.evaluation_only)
        for measured in report.evaluation_only:
            if measured.recall is not None:
                found[f"evaluation_only/{only[measured.dataset]}"] = measured.recall.at_1
        for name, capacity in report.capacity.items():
            found[f"free_share/{name}"] = capacity.free_share
        recalls = [recall.at_1 for recall in report.evaluation.values()]
        if recalls:
            found["mean_recall_at_1"] = sum(recalls) / len(recalls)
        drifts = (drift.since_learned for drift in report.drift.values())
        found["max_drift"] = max(drifts, default=0.0)
        return found

    def settings(self) -> dict[str, str]:
        """What stays the same for all versions of the model."""
        model = self.model
        return {
            "policy": str(model.policy or model.method),
            "width": str(model.width),
            "seed": str(model.seed),
        }

    def picture(self) -> str:
        """All pictures of the version as one SVG."""
        drawn = version_pictures(self.version)
        return arranged(self.name, {each.title: each for each in drawn if each is not None})


def versions(client: Client, model: str, *, once: bool = False) -> Iterator[Published]:
    """Yield every version; unless `once`, wait for new ones without an end."""
    kinds = ["version.published"]
    newest = next(iter(client.all_events(model, kinds, order="desc")), None)
    found = client.model(model)
    head = found.head_version or 0
    for number in range(1, head + 1):
        yield Published(found, client.version(model, number))
    if once:
        return
    after = (newest and newest.id) or 0
    for event in client.follow_events(model, kinds, after, outage_timeout=float("inf")):
        if event.version is not None and event.version > head:
            yield Published(found, client.version(model, event.version))


def _unique(datasets: Iterable[tuple[str, str]]) -> dict[str, str]:
    """By id: names, with the id where a dataset before it has the same name. A later dataset renames none before it."""
    found: dict[str, str] = {}
    names: set[str] = set()
    for dataset, name in datasets:
        found[dataset] = f"{name}-{dataset}" if name in names else name
        names.add(name)
    return found
