"""Airflow 3: a batch every night. Put this file and nightly.py into the folder of DAGs.

Variables of Airflow: cmcl_model, cmcl_pair (image,text), cmcl_source (s3://bucket/{day}/pairs.parquet). CMCL_URL and CMCL_KEY are
in the environment of the workers.
"""

from datetime import datetime, timedelta

import nightly
from airflow.sdk import Variable, dag, task


@dag(
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001 - Airflow takes it as UTC
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
)
def cmcl_nightly() -> None:
    """Post, wait, judge, publish."""

    @task
    def post(ds: str | None = None) -> str:
        source = Variable.get("cmcl_source").format(day=ds)
        model, pair = Variable.get("cmcl_model"), Variable.get("cmcl_pair")
        return nightly.post(model, pair, source, f"nightly-{ds}")

    # Between two looks it takes no worker.
    @task.sensor(poke_interval=60, timeout=6 * 3600, mode="reschedule")
    def wait(job: str) -> bool:
        return nightly.is_judgeable(job)

    @task
    def judge(job: str) -> str:
        return nightly.judge(job)

    @task
    def publish(job: str) -> int:
        return nightly.publish(job)

    job = post()
    wait(job) >> judge(job) >> publish(job)


cmcl_nightly()
