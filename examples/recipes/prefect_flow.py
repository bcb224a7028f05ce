"""Prefect 3: a batch every night. `python prefect_flow.py` serves the schedule, beside nightly.py."""

from datetime import UTC, datetime

import nightly
from prefect import flow, task

retrying = task(retries=3, retry_delay_seconds=300)
post, wait, judge, publish = map(
    retrying, (nightly.post, nightly.wait, nightly.judge, nightly.publish)
)


@flow
def cmcl_nightly(
    model: str = "shapes",
    pair: str = "image,text",
    source: str = "s3://bucket/{day}/pairs.parquet",
    pause: float = 60,
) -> int:
    """Post, wait, judge, publish."""
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    job = post(model, pair, source.format(day=day), f"nightly-{day}")
    wait(job, pause=pause)
    judge(job)
    return publish(job)


if __name__ == "__main__":
    cmcl_nightly.serve(name="cmcl-nightly", cron="0 2 * * *")
