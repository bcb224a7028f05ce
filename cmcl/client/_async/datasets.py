"""Calls about datasets, and dry runs, which prepare a dataset and report what a training would meet."""

import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from cmcl.client._async.jobs import JobCalls
from cmcl.client._async.uploads import UploadCalls
from cmcl.client.concurrency import async_call
from cmcl.client.errors import CmclError, InvalidArgument, Json
from cmcl.client.files import (
    OnUpload,
    Shard,
    ShardLists,
    ShardSource,
    Uploading,
    UploadMode,
    UploadProgress,
    all_local,
    expand,
    raw_path,
    refused_local,
    replaced,
    shard_bodies,
    with_paths,
)
from cmcl.client.raw_folder import RawFolder, packed, read_raw_folder
from cmcl.client.wire import Order, Request, given, read, segment
from cmcl.contract.api.datasets import AcceptedDataset, Dataset, DatasetSummary, PostedDataset
from cmcl.contract.api.jobs import Job
from cmcl.contract.api.models import Encoder, Model
from cmcl.contract.dataset import RejectedRow, ShardRef
from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.modality import ModalityPair

T = TypeVar("T", bound=BaseModel)

Pair = ModalityPair | tuple[str, str]


class DatasetCalls(UploadCalls, JobCalls):
    """Calls about datasets."""

    async def add_dataset(  # noqa: PLR0913 - what a dataset has
        self,
        model: str,
        name: str,
        pair: Pair,
        shards: Sequence[ShardSource],
        evaluation_shards: Sequence[ShardSource] = (),
        *,
        evaluation_share: float | None = None,
        max_bad_share: float | None = None,
        encoders: Mapping[str, EncoderIdentity] | None = None,
        evaluate_only: bool = False,
        upload: UploadMode = "auto",
        on_upload: OnUpload | None = None,
    ) -> AcceptedDataset:
        """Post a dataset and start its job. Posting the same shards again returns the same job.

        `shards` are addresses, or local files and folders; a folder of raw files (docs/datasets.md) is
        packed and uploaded. `evaluation_shards` are held out, and so is the share `evaluation_share` of
        the rows of `shards`. At most the share `max_bad_share` of the rows may be unusable and is left
        out: by default 0.01 of raw rows, and no row of features. `encoders`: by modality, the encoder
        that computed posted features, if it is known. With `evaluate_only` nothing is learned: recall is
        measured on all rows of `shards`, with the live version and every later one. `upload` is "auto" (upload local files that the
        service cannot read), "always" or "never". `on_upload` receives the progress.
        """
        return await self._post_with_shards(
            AcceptedDataset,
            "/v1/datasets",
            {
                **_body(model, name, pair, evaluation_share, max_bad_share, encoders),
                **({"evaluate_only": True} if evaluate_only else {}),
            },
            {"shards": shards, "evaluation_shards": evaluation_shards},
            Uploading(upload, on_upload),
            (model, _as_pair(pair)),
        )

    async def open_dataset(  # noqa: PLR0913 - what a dataset has
        self,
        model: str,
        name: str,
        pair: Pair,
        shards: Sequence[ShardSource] = (),
        evaluation_shards: Sequence[ShardSource] = (),
        *,
        evaluation_share: float | None = None,
        max_bad_share: float | None = None,
        encoders: Mapping[str, EncoderIdentity] | None = None,
        evaluate_only: bool = False,
        upload: UploadMode = "auto",
        on_upload: OnUpload | None = None,
    ) -> DatasetSummary:
        """Post a dataset that stays open for more shards. Its job starts when it is sealed."""
        opened = await self._post_with_shards(
            PostedDataset,
            "/v1/datasets",
            {
                **_body(model, name, pair, evaluation_share, max_bad_share, encoders),
                **({"evaluate_only": True} if evaluate_only else {}),
                "sealed": False,
            },
            {"shards": shards, "evaluation_shards": evaluation_shards},
            Uploading(upload, on_upload),
            (model, _as_pair(pair)),
        )
        return opened.dataset

    async def append_shards(
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
        of = None
        if _any_raw(sources):
            known = await self.dataset(dataset)
            of = known.model, known.pair
        return await self._post_with_shards(Dataset, path, {}, sources, uploading, of)

    async def raw_folder(self, path: str | Path, model: str, pair: Pair) -> RawFolder | None:
        """Read a folder of raw files: its layout, its rows, and what is left out. The result can be posted as a shard.

        None for anything else: a folder or file of shards, and an address.
        """
        raw = raw_path(path)
        if raw is None:
            return None
        takes = await self._takes(model)
        return await async_call(partial(read_raw_folder, raw, _as_pair(pair), takes))

    async def seal_dataset(self, dataset: str) -> AcceptedDataset:
        """Seal an open dataset and start its job. Sealing again returns the same job."""
        return await self._session.post(AcceptedDataset, f"{_path(dataset)}/seal")

    def datasets(
        self, model: str | None = None, order: Order = "asc"
    ) -> AsyncIterator[DatasetSummary]:
        """Iterate over all datasets, or those of a model; `order="desc"`: newest first."""
        params = given(model=model, order=order)
        return self._session.pages(DatasetSummary, "/v1/datasets", params)

    async def dataset(self, dataset: str) -> Dataset:
        """Return a dataset with its shards."""
        return await self._session.get(Dataset, _path(dataset))

    async def delete_dataset(self, dataset: str) -> None:
        """Delete a dataset that is open, that is measured only, or whose job ended without a version."""
        await self._session.delete(_path(dataset))

    async def unlearn_dataset(self, dataset: str, model: str | None = None) -> Job:
        """Start a job that publishes a version which never saw the dataset, and return it; `watch` follows it.

        `model`: the model that unlearns it, by default the one that the dataset was posted to; there it is deleted with
        that version. Called again, it returns the same job. Fails with 409 if the newest version cannot unlearn it.
        """
        params = given(unlearn="true", model=model)
        request = Request("DELETE", _path(dataset), params=params)
        return read(Job, await self._session.send(request))

    async def erase_row(
        self, dataset: str, features: Mapping[str, Sequence[float]], model: str | None = None
    ) -> Job:
        """Start a job that erases a row from a dataset, and return it; `watch` follows it.

        `features`: by modality, both sides of the row as they were learned. Called again, it returns the same job. Fails
        with 409 if the model is not erasable; the job fails if the dataset has no such row.
        """
        sides = {name: list(side) for name, side in features.items()}
        body = {"features": sides, **given(model=model)}
        return await self._session.post(Job, f"{_path(dataset)}/erase", body)

    def rejected_rows(self, dataset: str) -> AsyncIterator[RejectedRow]:
        """Iterate over all rows that were left out, with the reason of each."""
        return self._session.pages(RejectedRow, f"{_path(dataset)}/rejected-rows")

    async def dry_run(  # noqa: PLR0913 - what a dataset has
        self,
        model: str,
        name: str,
        pair: Pair,
        shards: Sequence[ShardSource],
        evaluation_shards: Sequence[ShardSource] = (),
        *,
        evaluation_share: float | None = None,
        max_bad_share: float | None = None,
        encoders: Mapping[str, EncoderIdentity] | None = None,
        upload: UploadMode = "auto",
        on_upload: OnUpload | None = None,
        on_change: Callable[[Job], None] | None = None,
        timeout: float = 3600.0,
    ) -> Dataset:
        """Prepare a dataset, report what a training would meet, and keep nothing but the report.

        Arguments are those of `add_dataset`; `on_change` is called at each change of the job. `report` of the result is None if the dataset cannot be prepared; `quarantine_reason` says why.
        Raises WaitTimeout after `timeout` seconds.
        """
        accepted = await self._post_with_shards(
            AcceptedDataset,
            "/v1/datasets",
            {
                **_body(model, name, pair, evaluation_share, max_bad_share, encoders),
                "dry_run": True,
            },
            {"shards": shards, "evaluation_shards": evaluation_shards},
            Uploading(upload, on_upload),
            (model, _as_pair(pair)),
        )
        await self.watch(accepted.job.id, on_change, timeout=timeout)
        return await self.dataset(accepted.dataset.id)

    async def _post_with_shards(
        self,
        kind: type[T],
        path: str,
        body: Json,
        sources: Mapping[str, Sequence[ShardSource]],
        uploading: Uploading,
        of: tuple[str, ModalityPair] | None,
    ) -> T:
        """POST a body with these lists of shards, by field. Uploads local files where needed.

        `of`: model and pair of raw folders.
        """
        lists: ShardLists = {
            field: [
                shard for source in given for shard in await self._shards(source, of, uploading)
            ]
            for field, given in sources.items()
        }
        if uploading.comes_first(is_near=self._session.is_near):
            lists = await self._send_files(lists, all_local(lists), uploading)
        try:
            return await self._session.post(kind, path, {**body, **shard_bodies(lists)})
        except CmclError as error:
            refused = refused_local(lists, error)
            if uploading.mode != "auto" or not refused:
                raise with_paths(error, lists) from error
        lists = await self._send_files(lists, refused, uploading)
        try:
            return await self._session.post(kind, path, {**body, **shard_bodies(lists)})
        except CmclError as error:
            raise with_paths(error, lists) from error

    async def _shards(
        self, source: ShardSource, of: tuple[str, ModalityPair] | None, uploading: Uploading
    ) -> list[Shard]:
        """The shards of a source; of a folder of raw files the uploads that it is packed into."""
        raw = source if isinstance(source, RawFolder) else None
        if of is None:
            return expand([source])
        model, pair = of
        if isinstance(source, str | Path):
            raw = await self.raw_folder(source, model, pair)
        if raw is None:
            return expand([source])
        if uploading.mode == "never":
            raise InvalidArgument(
                f"{raw.folder} has raw files, which are packed and uploaded. For data that the service can "
                "read where it lies, write a manifest (`cmcl dataset add --write-manifest`) and post its "
                "address"
            )
        return await self._send_packed(raw, pair, uploading)

    async def _send_packed(
        self, raw: RawFolder, pair: ModalityPair, uploading: Uploading
    ) -> list[Shard]:
        """Upload the rows as tars, one after another: the disk holds one at a time."""
        shards = []
        with tempfile.TemporaryDirectory(prefix="cmcl-pack-") as folder:
            steps = packed(raw, pair, raw.name, Path(folder))
            while (step := await async_call(partial(next, steps, None))) is not None:
                if uploading.on_upload is not None:
                    now = UploadProgress(raw.folder, step.bytes, raw.bytes, "packing")
                    uploading.on_upload(now)
                if step.tar is None:
                    continue
                complete = await self.upload(step.tar, uploading.on_upload)
                ref = ShardRef(uri=complete.uri or f"upload:{complete.id}")
                shards.append(Shard(ref, raw.folder))
                step.tar.unlink()
        return shards

    async def _takes(self, model: str) -> dict[str, str]:
        """What the encoder of each modality of a model takes."""
        pages = self._session.pages(Encoder, "/v1/encoders")
        takes = {encoder.name: encoder.takes async for encoder in pages}
        found = await self._session.get(Model, f"/v1/models/{segment(model)}")
        return {
            name: takes[modality.encoder]
            for name, modality in found.modalities.items()
            if modality.encoder in takes
        }

    async def _send_files(
        self, lists: ShardLists, paths: set[Path], uploading: Uploading
    ) -> ShardLists:
        """Upload these files, and return the lists with their uploads."""
        there: dict[Path, ShardRef] = {}
        for path in sorted(paths):
            complete = await self.upload(path, uploading.on_upload)
            there[path] = ShardRef(uri=complete.uri or f"upload:{complete.id}")
        return replaced(lists, there)


def _body(
    model: str,
    name: str,
    pair: Pair,
    evaluation_share: float | None,
    max_bad_share: float | None,
    encoders: Mapping[str, EncoderIdentity] | None = None,
) -> Json:
    body: Json = {"model": model, "name": name, "pair": _as_pair(pair).model_dump()}
    optional = {"evaluation_share": evaluation_share, "max_bad_share": max_bad_share}
    body |= {field: value for field, value in optional.items() if value is not None}
    if encoders:
        body["encoders"] = {name: each.model_dump(mode="json") for name, each in encoders.items()}
    return body


def _any_raw(sources: Mapping[str, Sequence[ShardSource]]) -> bool:
    return any(
        isinstance(source, RawFolder) or raw_path(source) is not None
        for given in sources.values()
        for source in given
    )


def _as_pair(pair: Pair) -> ModalityPair:
    """Return a ModalityPair. Raises ValidationError for invalid names."""
    if isinstance(pair, ModalityPair):
        return pair
    first, second = pair
    return ModalityPair(first=first, second=second)


def _path(dataset: str) -> str:
    return f"/v1/datasets/{segment(dataset)}"
