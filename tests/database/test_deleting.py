"""Deleting a model while a dataset is posted to it: one of the two comes first, on both databases."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Event

import pytest

from cmcl.contract.model import ModelSpec
from service.database.engine import Database
from service.database.queries import models
from service.datasets.addresses import Intake
from service.datasets.intake import accept_dataset
from service.datasets.request import NewDataset
from service.errors import Conflict
from service.principal import LOCAL
from service.registry.models import delete_model

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SPEC = ModelSpec(modalities={"image": 4, "text": 3})
BODY = {
    "model": "scenes",
    "name": "one",
    "pair": {"first": "image", "second": "text"},
    "shards": [{"uri": "s3://bucket/x"}],
}


def test_a_model_that_is_given_a_job_is_not_deleted(database: Database) -> None:
    with database.write() as connection:
        models.create(connection, "scenes", "default", SPEC, NOW)
    posted, deleting = Event(), Event()
    request = NewDataset.model_validate(BODY)
    intake = Intake.of(LOCAL, NOW, ("s3://bucket",), request)

    def delete() -> None:
        posted.wait(60)
        deleting.set()
        with database.write() as connection:
            delete_model(connection, "scenes", LOCAL, NOW)

    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(delete)
        with database.write() as connection:
            accept_dataset(connection, request, intake)
            posted.set()
            assert deleting.wait(60)
            # Give the other transaction the time to run into ours.
            with pytest.raises(TimeoutError):
                done.result(0.3)
        with pytest.raises(Conflict, match="has not ended"):
            done.result(60)
