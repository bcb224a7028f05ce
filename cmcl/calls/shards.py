"""Shards as users name them: addresses, files and folders of this machine, and how those get there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from cmcl.calls.uploads import upload
from cmcl.contract.dataset import ShardRef
from cmcl.errors import CmclError, FieldError, InvalidArgument, Json
from cmcl.flow.api import Api
from cmcl.flow.effects import Flow
from cmcl.types import UploadProgress

T = TypeVar("T")

ShardSource = ShardRef | str | Path
UploadMode = Literal["auto", "always", "never"]
OnUpload = Callable[[UploadProgress], None]

# What is taken from a folder; the service looks at the contents, not at the names.
SHARD_SUFFIXES = frozenset(
    {".parquet", ".arrow", ".feather", ".ipc", ".npz", ".safetensors", ".h5", ".hdf5"}
)
_REFUSED = 422


@dataclass(frozen=True)
class Uploading:
    """Which local files are sent to the service, and who is told how it goes.

    auto: those that it cannot read itself. A service on this machine is asked first; one elsewhere
    has no view of our disks. never: their addresses are posted, for disks that both sides share.
    """

    mode: UploadMode = "auto"
    on_upload: OnUpload | None = None

    def sends(self, api: Api) -> bool:
        """Whether local files are sent before anything is asked."""
        return self.mode == "always" or (self.mode == "auto" and not api.is_near)


@dataclass(frozen=True)
class _Shard:
    """One shard; `path` where it is a file of this machine, not yet known to be readable there."""

    ref: ShardRef
    path: Path | None = None


ShardLists = Mapping[str, Sequence[_Shard]]


def post_with_shards(
    api: Api,
    sources: Mapping[str, Sequence[ShardSource]],
    post: Callable[[Json], Flow[T]],
    uploading: Uploading,
) -> Flow[T]:
    """Post these lists of shards, by field. Local files are sent where `uploading` says so."""
    lists: ShardLists = {field: _expanded(given) for field, given in sources.items()}
    if uploading.sends(api):
        lists = yield from _sent(api, lists, _all_local(lists), uploading)
    try:
        return (yield from post(_body(lists)))
    except CmclError as error:
        refused = _refused_local(lists, error)
        if uploading.mode != "auto" or not refused:
            raise _with_paths(error, lists) from error
    lists = yield from _sent(api, lists, refused, uploading)
    try:
        return (yield from post(_body(lists)))
    except CmclError as error:
        raise _with_paths(error, lists) from error


def _expanded(sources: Sequence[ShardSource]) -> list[_Shard]:
    return [shard for source in sources for shard in _shards(source)]


def _shards(source: ShardSource) -> list[_Shard]:
    if isinstance(source, ShardRef):
        return [_Shard(source)]
    if isinstance(source, str) and ("://" in source or source.startswith("upload:")):
        return [_Shard(ShardRef(uri=source))]
    return [_Shard(ShardRef(uri=path.as_uri()), path) for path in _files(Path(source).resolve())]


def _files(path: Path) -> list[Path]:
    """A file, or those of a folder that may be shards, by name. Raises InvalidArgument."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InvalidArgument(f"there is no file or folder {path}")
    found = sorted(file for file in path.iterdir() if _may_be_shard(file))
    if not found:
        permitted = ", ".join(sorted(SHARD_SUFFIXES))
        raise InvalidArgument(f"folder {path} has no file that ends in one of {permitted}")
    return found


def _may_be_shard(file: Path) -> bool:
    hidden = file.name.startswith(".")
    return file.suffix.lower() in SHARD_SUFFIXES and not hidden and file.is_file()


def _all_local(lists: ShardLists) -> set[Path]:
    return {shard.path for shards in lists.values() for shard in shards if shard.path}


def _refused_local(lists: ShardLists, error: CmclError) -> set[Path]:
    """Files whose addresses the service does not take; empty if it refused anything else."""
    if error.status != _REFUSED:
        return set()
    of_field = {
        f"{field}[{index}].uri": shard.path
        for field, shards in lists.items()
        for index, shard in enumerate(shards)
    }
    refused = [_path_of(each, of_field) for each in error.fields]
    return {path for path in refused if path} if all(refused) else set()


def _path_of(error: FieldError, of_field: Mapping[str, Path | None]) -> Path | None:
    return of_field.get(error.field)


def _sent(api: Api, lists: ShardLists, paths: set[Path], uploading: Uploading) -> Flow[ShardLists]:
    """The same lists after these files were uploaded."""
    there: dict[Path, ShardRef] = {}
    for path in sorted(paths):
        complete = yield from upload(api, path, uploading.on_upload)
        there[path] = ShardRef(uri=complete.uri or f"upload:{complete.id}")
    return {
        field: [
            _Shard(there[shard.path], shard.path) if shard.path in there else shard
            for shard in shards
        ]
        for field, shards in lists.items()
    }


def _with_paths(error: CmclError, lists: ShardLists) -> CmclError:
    """The same error, with the user's files in the place of uploads and of addresses on their disks."""
    paths = {
        shard.ref.uri: str(shard.path)
        for shards in lists.values()
        for shard in shards
        if shard.path
    }
    fields = tuple(
        FieldError(each.field, _renamed(each.message, paths), each.value) for each in error.fields
    )
    return type(error)(
        *(_renamed(str(error), paths), error.status, error.type, fields),
        *(error.request_id, error.retry_after),
    )


def _renamed(text: str, paths: Mapping[str, str]) -> str:
    for uri, path in paths.items():
        text = text.replace(uri, f"{path} ({uri})")
    return text


def _body(lists: ShardLists) -> Json:
    return {
        field: [shard.ref.model_dump(exclude_none=True) for shard in shards]
        for field, shards in lists.items()
    }
