"""What replicas of the endpoint report of the queries of a model."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from cmcl.contract.drift import FEWEST_ROWS, DriftReport, DriftWindow, ModalityDrift
from cmcl.storage import layout
from cmcl.storage.documents import write_document
from cmcl.storage.object_store import ObjectStore


def report_query_drift(
    store: ObjectStore,
    levels: Mapping[str, Sequence[float]],
    model: str = "scenes",
    promoted: int | None = None,
) -> None:
    """Write a report: by modality the level of each window. `promoted`: the first window of version 2."""
    begin = datetime(2026, 12, 1, tzinfo=UTC)
    modalities = {
        name: ModalityDrift(
            windows=tuple(
                DriftWindow(
                    at=begin + timedelta(minutes=minute),
                    version=1 if promoted is None or minute < promoted else 2,
                    rows=FEWEST_ROWS,
                    level=level,
                )
                for minute, level in enumerate(each)
            ),
            mean=(0.0,),
        )
        for name, each in levels.items()
    }
    written = DriftReport(model=model, modalities=modalities)
    write_document(store, layout.drift_report(model), written)
