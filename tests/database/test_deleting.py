"""Deleting models and datasets, on both databases."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Event

import pytest
from sqlalchemy import update

from cmcl.contract.api.jobs import JobState
from cmcl.contract.model import ModelSpec
from cmcl.storage import layout
from service.core.errors import Conflict
from service.core.principal import LOCAL
from service.core.settings import Settings
from service.database.engine import Database
from service.database.queries import datasets, maintenance, models, versions
from service.database.tables import jobs
from service.database.tables import versions as version_rows
from service.datasets.intake import Intake, NewDataset, accept_dataset
from service.registry.models import delete_model
from tests.unit.storage.candidate import FILES, manifest_of

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
    settings = Settings.model_validate({"allowed_prefixes": ("s3://bucket",)})
    intake = Intake.of(LOCAL, NOW, settings, request)

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


def test_what_was_unlearned_is_found_with_the_versions_that_have_it(database: Database) -> None:
    line = manifest_of(FILES).learned[0]
    with database.write() as connection:
        models.create(connection, "scenes", "default", SPEC, NOW)
        settings = Settings.model_validate({"allowed_prefixes": ("s3://bucket",)})
        request = NewDataset.model_validate(BODY)
        accepted = accept_dataset(connection, request, Intake.of(LOCAL, NOW, settings, request))
        dataset, job = accepted.dataset, accepted.job
        assert job is not None
        connection.execute(update(jobs).values(state=JobState.PUBLISHED, finished_at=NOW))
        datasets.set_deleted(connection, dataset, "a job", NOW)
        other = line.model_copy(update={"dataset": "ds-000000000000"})
        own = line.model_copy(update={"dataset": dataset.id})
        lineages = {1: (other,), 2: (other, own), 3: (other,)}
        for number, learned in lineages.items():
            gone = own if number == 3 else None
            changes = {"version": number, "learned": learned, "unlearned": gone, "job": job.id}
            manifest = manifest_of(FILES).model_copy(update=changes)
            versions.create(connection, manifest, NOW)
            # One job has one version.
            connection.execute(update(version_rows).values(job=None))
    with database.read() as connection:
        assert maintenance.unlearned_datasets(connection) == [dataset.id]
        needs = maintenance.needs_of_datasets(connection)
        assert (needs.known, layout.dataset_prefix(dataset.id) in needs.prefixes) == (
            {dataset.id},
            True,
        )
        found = maintenance.versions_with(connection, dataset.id)
        assert [version.number for version in found] == [2]
        assert maintenance.versions_with(connection, "ds-ffffffffffff") == []
