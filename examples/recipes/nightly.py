"""Learn one batch: post it, wait, judge the candidate, publish it.

Every step may be repeated: the same files are the same dataset and the same job, a decision is sent for the state
that was judged, and a version that is live already stays so. So a scheduler may retry any of them.

    CMCL_URL=http://127.0.0.1:8000 python nightly.py shapes image,text s3://bucket/2026-11-29/pairs.parquet
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cmcl import Client, CmclError
from cmcl.client import Candidate, Job

# The gate of the model asks for approval (docs/apply.md), so that a candidate waits for `judge`.
HELD = "held"
CONFLICT, PRECONDITION_FAILED = 409, 412


class NotPublished(Exception):
    """The batch has not become a version. Trying again does not help."""


@contextmanager
def connected() -> Iterator[Client]:
    """Connect to the control plane of CMCL_URL, with the key in CMCL_KEY."""
    with Client(os.environ.get("CMCL_URL", "http://127.0.0.1:8000")) as client:
        yield client


def post(model: str, pair: str, source: str, name: str) -> str:
    """Post a folder, a file or the address of one as a dataset, and return the id of its job."""
    first, _, second = pair.partition(",")
    with connected() as client:
        accepted = client.add_dataset(
            model, name, (first, second), [source], evaluation_share=0.1, upload="auto"
        )
    return accepted.job.id


def is_judgeable(job: str) -> bool:
    """Whether the job has a candidate to judge, or has ended: for schedulers that poll."""
    with connected() as client:
        found = client.job(job)
    return found.state == HELD or found.has_ended


def wait(job: str, seconds: float = 6 * 3600, pause: float = 10) -> None:
    """Wait until the job has a candidate to judge, or has ended. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not is_judgeable(job):
        if time.monotonic() > deadline:
            raise TimeoutError(f"job {job} has no candidate after {seconds:g} s")
        time.sleep(pause)


def judge(job: str, most_lost: float = 0.02) -> str:
    """Approve a candidate that meets the gate and by which no dataset loses more than `most_lost` of R@1.

    Returns the decision. A job that is not held was decided already.
    """
    with connected() as client:
        found = client.job(job)
        if found.state != HELD:
            return found.state
        reason = objection(client.candidate(job), most_lost)
        decide = client.reject if reason else client.approve
        try:
            decide(job, reason or f"no dataset loses more than {most_lost:g}", found.revision)
        except CmclError as error:
            # Decided since it was read, by an earlier attempt of this step or by a person.
            if error.status not in (CONFLICT, PRECONDITION_FAILED):
                raise
        return "rejected" if reason else "approved"


def objection(candidate: Candidate, most_lost: float) -> str | None:
    """What speaks against a candidate; None: nothing."""
    for bound in candidate.bounds:
        if bound.met is False:
            return bound.message or f"{bound.name} is not met"
    for dataset in candidate.datasets:
        before, after = dataset.recall_before, dataset.recall_after
        if before is not None and after is not None and before.at_1 - after.at_1 > most_lost:
            return f"{dataset.name} loses {before.at_1 - after.at_1:.3f} of R@1"
    return None


def publish(job: str) -> int:
    """Follow the job to its end, wait until its version is live, and return it. Raises NotPublished."""
    with connected() as client:
        ended: Job = client.watch(job)
        if ended.state != "published" or ended.version is None:
            raise NotPublished(f"job {job} is {ended.state}: {ended.message or ended.reason}")
        wait_until_live(client, ended.model, ended.version)
    return ended.version


def wait_until_live(client: Client, model: str, version: int, seconds: float = 600) -> None:
    """Wait until a published version has become live. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    # It becomes live when its manifest is stored.
    while client.version(model, version).stored_at is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"version {version} of {model} is not live after {seconds:g} s")
        time.sleep(0.5)


def main() -> int:
    """Run all steps, and print the version."""
    parser = argparse.ArgumentParser(description="Learn one batch.")
    parser.add_argument("model")
    parser.add_argument("pair", help="FIRST,SECOND")
    parser.add_argument("source", help="folder, file, or address of a file")
    parser.add_argument("--name", default=time.strftime("nightly-%Y-%m-%d"))
    parser.add_argument("--pause", type=float, default=10, help="seconds between two looks")
    given = parser.parse_args()
    job = post(given.model, given.pair, given.source, given.name)
    wait(job, pause=given.pause)
    judge(job)
    try:
        print(f"{given.model}@{publish(job)}")
    except NotPublished as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
