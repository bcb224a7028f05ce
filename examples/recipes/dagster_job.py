"""Dagster: a batch every night. `dagster dev -f dagster_job.py` beside nightly.py."""

import nightly
from dagster import (
    Config,
    Definitions,
    OpExecutionContext,
    RetryPolicy,
    RunConfig,
    ScheduleDefinition,
    job,
    op,
)

RETRIES = RetryPolicy(max_retries=3, delay=300)


class Batch(Config):
    """What is learned."""

    model: str
    pair: str = "image,text"
    source: str
    name: str
    pause: float = 60


@op(retry_policy=RETRIES)
def post(config: Batch) -> str:
    """Post the batch."""
    return nightly.post(config.model, config.pair, config.source, config.name)


@op(retry_policy=RETRIES)
def wait(config: Batch, job_id: str) -> str:
    """Wait for its candidate."""
    nightly.wait(job_id, pause=config.pause)
    return job_id


@op(retry_policy=RETRIES)
def judge(context: OpExecutionContext, job_id: str) -> str:
    """Approve or reject the candidate."""
    context.log.info(nightly.judge(job_id))
    return job_id


@op(retry_policy=RETRIES)
def publish(job_id: str) -> int:
    """Make the version live."""
    return nightly.publish(job_id)


@job
def cmcl_nightly() -> None:
    """Post, wait, judge, publish."""
    publish(judge(wait(post())))


def batch_of(day: str, **changes: object) -> RunConfig:
    """The configuration of one night."""
    batch = Batch(
        **{
            "model": "shapes",
            "source": f"s3://bucket/{day}/pairs.parquet",
            "name": f"nightly-{day}",
            **changes,
        }
    )
    return RunConfig(ops={"post": batch, "wait": batch})


definitions = Definitions(
    jobs=[cmcl_nightly],
    schedules=[
        ScheduleDefinition(
            job=cmcl_nightly,
            cron_schedule="0 2 * * *",
            run_config_fn=lambda context: batch_of(f"{context.scheduled_execution_time:%Y-%m-%d}"),
        )
    ],
)
