"""OpenLineage, for Marquez, DataHub or OpenMetadata. `pip install openlineage-python`, then

    OPENLINEAGE_URL=http://127.0.0.1:5000 python openlineage_runs.py shapes   # until Ctrl-C; --once: what there is

A job for the model, and a run for each version: it reads the dataset and the parent version, and writes a version.
Ids and times of runs follow from those of the control plane's jobs, so an event that is sent again is the same event.
"""

import argparse
from uuid import NAMESPACE_URL, uuid5

from follow import URL, Published, versions
from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState

from cmcl import Client


def event_of(published: Published, namespace: str) -> RunEvent:
    """Return the end of the run that made the version."""
    version = published.version
    job = f"{namespace}/jobs/{version.job or published.name}"
    inputs = []
    if version.parent is not None:
        parent = f"models/{version.model}/versions/{version.parent}"
        inputs.append(InputDataset(namespace, parent))
    if version.dataset is not None:
        inputs.append(InputDataset(namespace, f"datasets/{version.dataset}"))
    output = OutputDataset(namespace, f"models/{version.model}/versions/{version.version}")
    return RunEvent(
        eventType=RunState.COMPLETE,
        eventTime=version.created_at.isoformat(),
        producer="urn:cmcl:openlineage",
        run=Run(str(uuid5(NAMESPACE_URL, job))),
        job=Job(namespace, version.model),
        inputs=inputs,
        outputs=[output],
    )


def main() -> None:
    """Send what the arguments name."""
    parser = argparse.ArgumentParser(description="Versions as OpenLineage events.")
    parser.add_argument("model")
    parser.add_argument("--namespace", default="cmcl")
    parser.add_argument("--once", action="store_true")
    given = parser.parse_args()
    server = OpenLineageClient()
    with Client(URL) as client:
        for published in versions(client, given.model, once=given.once):
            server.emit(event_of(published, given.namespace))


if __name__ == "__main__":
    main()
