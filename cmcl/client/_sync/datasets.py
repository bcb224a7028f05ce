# Generated from cmcl/client/_async/datasets.py by `make docs`; edit that file.
"""Calls about datasets, and about pre-flights, which check a dataset before it is posted."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from cmcl.client._sync.uploads import UploadCalls
from cmcl.client.errors import CmclError, Json, WaitTimeout
from cmcl.client.files import (
    OnUpload,
    ShardLists,
    ShardSource,
    Uploading,
    UploadMode,
    all_local,
    expand,
    refused_local,
    replaced,
    shard_bodies,
    with_paths,
)
from cmcl.client.types import AcceptedDataset, ApiModel, Dataset, DatasetSummary, Preflight
from cmcl.client.wire import given, segment
from cmcl.contract.dataset import ShardRef
from cmcl.contract.modality import ModalityPair

T = TypeVar("T", bound=BaseModel)

Pair = ModalityPair | tuple[str, str]


class _Opened(ApiModel):
    """Response for a dataset that may not have a job yet."""

    dataset: DatasetSummary


class DatasetCalls(UploadCalls):
    """Calls about datasets and pre-flights."""

    def add_dataset(  # noqa: PLR0913 - what a dataset has
        self,
        model: str,
        name: str,
        pair: Pair,
        shards: Sequence[ShardSource],
        evaluation_shards: Sequence[ShardSource] = (),
        *,
        evaluation_share: float | None = None,
        upload: UploadMode = "auto",
        on_upload: OnUpload | None = None,
    ) -> AcceptedDataset:
        """Post a dataset and start its job. Posting the same shards again returns the same job.

        `shards` are addresses, or local files and folders. `evaluation_shards` are held out, and so
        is the share `evaluation_share` of the rows of `shards`. `upload` is "auto" (upload local
        files that the service cannot read), "always" or "never". `on_upload` receives the progress.
        """
        return self._post_with_shards(
            AcceptedDataset,
            "/v1/datasets",
            _body(model, name, pair, evaluation_share),
            {"shards": shards, "evaluation_shards": evaluation_shards},
            Uploading(upload, on_upload),
        )

    def open_dataset(  # noqa: PLR0913 - what a dataset has
        self,
        model: str,
        name: str,
        pair: Pair,
        shards: Sequence[ShardSource] = (),
        evaluation_shards: Sequence[ShardSource] = (),
        *,
        evaluation_share: float | None = None,
        upload: UploadMode = "auto",
        on_upload: OnUpload | None = None,
    ) -> DatasetSummary:
        """Post a dataset that stays open for more shards. Its job starts when it is sealed."""
        opened = self._post_with_shards(
            _Opened,
            "/v1/datasets",
            {**_body(model, name, pair, evaluation_share), "sealed": False},
            {"shards": shards, "evaluation_shards": evaluation_shards},
            Uploading(upload, on_upload),
        )
        return opened.dataset

    def append_shards(
        self,
        dataset: str,
        shards: Sequence[ShardSource] = (),
        evaluation_shards: Sequence[ShardSource] = (),
        *,
        upload: UploadMode = "auto",
        on_upload: OnUpload | None = None,
    ) -> Dataset:
        """Add shards to an open dataset. Fails if the dataset is sealed."""
        sources = {"shards": shards, "evaluation_shards": evaluation_shards}
        path = f"{_path(dataset)}/shards"
        uploading = Uploading(upload, on_upload)
        return self._post_with_shards(Dataset, path, {}, sources, uploading)

    def seal_dataset(self, dataset: str) -> AcceptedDataset:
        """Seal an open dataset and start its job. Sealing again returns the same job."""
        return self._session.post(AcceptedDataset, f"{_path(dataset)}/seal")

    def datasets(self, model: str | None = None) -> Iterator[DatasetSummary]:
        """Iterate over all datasets, or those of a model, oldest first."""
        return self._session.pages(DatasetSummary, "/v1/datasets", given(model=model))

    def dataset(self, dataset: str) -> Dataset:
        """Return a dataset with its shards."""
        return self._session.get(Dataset, _path(dataset))

    def delete_dataset(self, dataset: str) -> None:
        """Delete a dataset that is open, or whose job ended without a version."""
        self._session.delete(_path(dataset))

    def start_preflight(
        self,
        model: str,
        pair: Pair,
        shards: Sequence[ShardSource],
        *,
        upload: UploadMode = "auto",
        on_upload: OnUpload | None = None,
    ) -> Preflight:
        """Start a check of a dataset without posting it. Nothing is trained. See `await_preflight`."""
        return self._post_with_shards(
            Preflight,
            f"/v1/models/{segment(model)}/preflight",
            {"pair": _as_pair(pair).model_dump()},
            {"shards": shards},
            Uploading(upload, on_upload),
        )

    def preflight(self, preflight: str) -> Preflight:
        """Return a pre-flight; `outlook` is its result."""
        return self._session.get(Preflight, f"/v1/preflights/{segment(preflight)}")

    def preflights(self, model: str) -> Iterator[Preflight]:
        """Iterate over the pre-flights of a model, oldest first."""
        return self._session.pages(Preflight, f"/v1/models/{segment(model)}/preflights")

    def await_preflight(
        self, preflight_id: str, timeout: float = 600.0, poll_seconds: float = 0.5
    ) -> Preflight:
        """Wait for the result of a pre-flight. Raises WaitTimeout after `timeout` seconds."""
        clock = self._session.clock
        deadline = clock.now() + timeout
        while True:
            now = self.preflight(preflight_id)
            if now.has_ended:
                return now
            if clock.now() >= deadline:
                raise WaitTimeout(
                    f"pre-flight {preflight_id} has no result after {timeout:g} seconds"
                )
            clock.sleep(poll_seconds)

    def _post_with_shards(
        self,
        kind: type[T],
        path: str,
        body: Json,
        sources: Mapping[str, Sequence[ShardSource]],
        uploading: Uploading,
    ) -> T:
        """POST a body with these lists of shards, by field. Uploads local files where needed."""
        lists: ShardLists = {field: expand(given) for field, given in sources.items()}
        if uploading.comes_first(is_near=self._session.is_near):
            lists = self._send_files(lists, all_local(lists), uploading)
        try:
            return self._session.post(kind, path, {**body, **shard_bodies(lists)})
        except CmclError as error:
            refused = refused_local(lists, error)
            if uploading.mode != "auto" or not refused:
                raise with_paths(error, lists) from error
        lists = self._send_files(lists, refused, uploading)
        try:
            return self._session.post(kind, path, {**body, **shard_bodies(lists)})
        except CmclError as error:
            raise with_paths(error, lists) from error

    def _send_files(self, lists: ShardLists, paths: set[Path], uploading: Uploading) -> ShardLists:
        """Upload these files, and return the lists with their uploads."""
        there: dict[Path, ShardRef] = {}
        for path in sorted(paths):
            complete = self.upload(path, uploading.on_upload)
            there[path] = ShardRef(uri=complete.uri or f"upload:{complete.id}")
        return replaced(lists, there)


def _body(model: str, name: str, pair: Pair, evaluation_share: float | None) -> Json:
    body: Json = {"model": model, "name": name, "pair": _as_pair(pair).model_dump()}
    if evaluation_share is not None:
        body["evaluation_share"] = evaluation_share
    return body


def _as_pair(pair: Pair) -> ModalityPair:
    """Return a ModalityPair. Raises ValidationError for invalid names."""
    if isinstance(pair, ModalityPair):
        return pair
    first, second = pair
    return ModalityPair(first=first, second=second)


def _path(dataset: str) -> str:
    return f"/v1/datasets/{segment(dataset)}"
