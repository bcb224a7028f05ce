"""Datasets: posted, left open, appended to, sealed, deleted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from cmcl.calls.shards import (
    OnUpload,
    ShardSource,
    Uploading,
    UploadMode,
    post_with_shards,
)
from cmcl.contract.modality import ModalityPair
from cmcl.errors import Json
from cmcl.flow.api import Answer as AnyAnswer
from cmcl.flow.api import Api, given, segment
from cmcl.flow.effects import Flow, Items
from cmcl.types import Accepted, Dataset, DatasetSummary
from cmcl.types.answer import Answer

T = TypeVar("T")

Pair = ModalityPair | tuple[str, str]


class _Opened(Answer):
    """What the service answers where there may be no job yet."""

    dataset: DatasetSummary


@dataclass(frozen=True)
class _NewDataset:
    """What is posted."""

    model: str
    name: str
    pair: Pair
    shards: Sequence[ShardSource]
    evaluation_shards: Sequence[ShardSource]
    evaluation_share: float | None

    def body(self, lists: Json) -> Json:
        share = self.evaluation_share
        return {
            "model": self.model,
            "name": self.name,
            "pair": as_pair(self.pair).model_dump(),
            **lists,
            **({} if share is None else {"evaluation_share": share}),
        }


def add_dataset(  # noqa: PLR0913 - what a dataset has
    api: Api,
    model: str,
    name: str,
    pair: Pair,
    shards: Sequence[ShardSource],
    evaluation_shards: Sequence[ShardSource] = (),
    *,
    evaluation_share: float | None = None,
    upload: UploadMode = "auto",
    on_upload: OnUpload | None = None,
) -> Flow[Accepted]:
    """Post a dataset; a job learns it. The same shards again answer the same job.

    `shards` are addresses, files or folders of this machine; `evaluation_shards` are held out, and
    `evaluation_share` of the rows of `shards` as well. Local files are sent where the service cannot
    read them: `upload` is auto, always or never, and `on_upload` is told how it goes.
    """
    new = _NewDataset(model, name, pair, shards, evaluation_shards, evaluation_share)
    return _post(api, new, {}, Accepted, Uploading(upload, on_upload))


def open_dataset(  # noqa: PLR0913 - what a dataset has
    api: Api,
    model: str,
    name: str,
    pair: Pair,
    shards: Sequence[ShardSource] = (),
    evaluation_shards: Sequence[ShardSource] = (),
    *,
    evaluation_share: float | None = None,
    upload: UploadMode = "auto",
    on_upload: OnUpload | None = None,
) -> Flow[DatasetSummary]:
    """Post a dataset that stays open: more shards can be appended, and its job begins once sealed."""
    new = _NewDataset(model, name, pair, shards, evaluation_shards, evaluation_share)
    open_ = {"sealed": False}
    opened = yield from _post(api, new, open_, _Opened, Uploading(upload, on_upload))
    return opened.dataset


def append_shards(
    api: Api,
    dataset: str,
    shards: Sequence[ShardSource] = (),
    evaluation_shards: Sequence[ShardSource] = (),
    *,
    upload: UploadMode = "auto",
    on_upload: OnUpload | None = None,
) -> Flow[Dataset]:
    """Add shards to an open dataset; refused once it is sealed."""
    sources = {"shards": shards, "evaluation_shards": evaluation_shards}
    path = f"{_path(dataset)}/shards"
    return post_with_shards(
        api, sources, lambda lists: api.post(Dataset, path, lists), Uploading(upload, on_upload)
    )


def seal_dataset(api: Api, dataset: str) -> Flow[Accepted]:
    """No more shards: its job begins. Sealing again answers the same job."""
    return api.post(Accepted, f"{_path(dataset)}/seal")


def datasets(api: Api, model: str | None = None) -> Items[DatasetSummary]:
    """All datasets, or those of a model, in the order of their arrival."""
    return api.pages(DatasetSummary, "/v1/datasets", given(model=model))


def dataset(api: Api, dataset: str) -> Flow[Dataset]:
    """One dataset with its shards."""
    return api.get(Dataset, _path(dataset))


def delete_dataset(api: Api, dataset: str) -> Flow[None]:
    """Remove a dataset that is open, or whose job ended without a version."""
    return api.delete(_path(dataset))


def as_pair(pair: Pair) -> ModalityPair:
    """As the contract has it; raises ValidationError for one that is none."""
    if isinstance(pair, ModalityPair):
        return pair
    first, second = pair
    return ModalityPair(first=first, second=second)


def _post(
    api: Api, new: _NewDataset, more: Json, kind: type[AnyAnswer], uploading: Uploading
) -> Flow[AnyAnswer]:
    sources = {"shards": new.shards, "evaluation_shards": new.evaluation_shards}
    return post_with_shards(
        api,
        sources,
        lambda lists: api.post(kind, "/v1/datasets", {**new.body(lists), **more}),
        uploading,
    )


def _path(dataset: str) -> str:
    return f"/v1/datasets/{segment(dataset)}"
