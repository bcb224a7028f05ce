"""Local files: shards given by path, and files to upload."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cmcl.client.errors import CmclError, FieldError, InvalidArgument, Json
from cmcl.client.raw_folder import MEDIA_SUFFIXES, RawFolder, noun_of
from cmcl.contract.api.datasets import Upload
from cmcl.contract.dataset import ShardRef

# A folder of raw files that was read already is sent as it was read.
ShardSource = ShardRef | RawFolder | str | Path
UploadMode = Literal["auto", "always", "never"]

# Files that are taken from a folder. Preparation detects formats by content.
SHARD_SUFFIXES = frozenset(
    {".parquet", ".arrow", ".feather", ".ipc", ".npz", ".safetensors", ".tar"}
)
_REFUSED = 422


@dataclass(frozen=True)
class UploadProgress:
    """Bytes of a file that have arrived; or bytes of a folder of raw files that are packed into tars."""

    path: Path
    sent: int
    total: int
    phase: Literal["packing", "sending"] = "sending"


OnUpload = Callable[[UploadProgress], None]


@dataclass(frozen=True)
class Uploading:
    """Which local files are uploaded, and a callback for the progress.

    auto: files that the service cannot read. A service on this machine is asked first; for a remote
    service all files are uploaded. never: post the files' addresses, for disks that both sides share.
    """

    mode: UploadMode = "auto"
    on_upload: OnUpload | None = None

    def comes_first(self, *, is_near: bool) -> bool:
        """Whether to upload before the request. `is_near`: the service is on this machine."""
        return self.mode == "always" or (self.mode == "auto" and not is_near)


@dataclass(frozen=True)
class Shard:
    """A shard. `path` is its local file, also after the upload, or the folder that it was packed from."""

    ref: ShardRef
    path: Path | None = None

    @property
    def unsent(self) -> Path | None:
        """The local file, if it is not uploaded."""
        return self.path if self.path and self.ref.uri == self.path.as_uri() else None


ShardLists = Mapping[str, Sequence[Shard]]


def expand(sources: Sequence[ShardSource]) -> list[Shard]:
    """Return the shards of addresses, files and folders. Raises InvalidArgument."""
    return [shard for source in sources for shard in _shards(source)]


def _shards(source: ShardSource) -> list[Shard]:
    if isinstance(source, ShardRef):
        return [Shard(source)]
    if isinstance(source, RawFolder):
        raise InvalidArgument(f"{source.folder} is packed before it is sent")
    if isinstance(source, str) and ("://" in source or source.startswith("upload:")):
        return [Shard(ShardRef(uri=source))]
    return [Shard(ShardRef(uri=path.as_uri()), path) for path in _files(Path(source).resolve())]


def _files(path: Path) -> list[Path]:
    """Return a file, or the possible shards of a folder, by name. Raises InvalidArgument."""
    if path.is_file():
        if path.suffix.lower() in MEDIA_SUFFIXES:
            raise InvalidArgument(
                f"{path} is a {noun_of(path)}, and no file of rows: give the folder that has it with its text"
            )
        return [path]
    if not path.is_dir():
        raise InvalidArgument(f"no such file or folder: {path}")
    found = sorted(file for file in path.iterdir() if _may_be_shard(file))
    if not found:
        permitted = ", ".join(sorted(SHARD_SUFFIXES))
        raise InvalidArgument(
            f"folder {path} has no shards (files whose names end in one of {permitted})"
        )
    return found


def _may_be_shard(file: Path) -> bool:
    hidden = file.name.startswith(".")
    return file.suffix.lower() in SHARD_SUFFIXES and not hidden and file.is_file()


def raw_path(source: ShardSource) -> Path | None:
    """The local folder or manifest of raw rows that a source names, or None for anything else."""
    if (
        isinstance(source, ShardRef | RawFolder)
        or "://" in str(source)
        or str(source).startswith("upload:")
    ):
        return None
    path = Path(source).resolve()
    if path.is_file():
        return path if path.suffix.lower() in (".jsonl", ".csv") else None
    is_of_shards = path.is_dir() and any(map(_may_be_shard, path.iterdir()))
    return path if path.is_dir() and not is_of_shards else None


def all_local(lists: ShardLists) -> set[Path]:
    """Return all local files that are not uploaded."""
    return {path for shards in lists.values() for shard in shards if (path := shard.unsent)}


def refused_local(lists: ShardLists, error: CmclError) -> set[Path]:
    """Return the files whose addresses the service rejected; empty if it rejected anything else."""
    if error.status != _REFUSED:
        return set()
    of_field = {
        f"{field}[{index}].uri": shard.unsent
        for field, shards in lists.items()
        for index, shard in enumerate(shards)
    }
    refused = [_path_of(each, of_field) for each in error.fields]
    return {path for path in refused if path} if all(refused) else set()


def _path_of(error: FieldError, of_field: Mapping[str, Path | None]) -> Path | None:
    return of_field.get(error.field)


def replaced(lists: ShardLists, there: Mapping[Path, ShardRef]) -> ShardLists:
    """Return the lists with these files replaced by their uploads."""
    return {
        field: [
            Shard(there[path], path) if (path := shard.unsent) and path in there else shard
            for shard in shards
        ]
        for field, shards in lists.items()
    }


def with_paths(error: CmclError, lists: ShardLists) -> CmclError:
    """Return the error with local paths added to the addresses of files and uploads."""
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
        error.request_id,
        retry_after=error.retry_after,
        code=error.code,
    )


def _renamed(text: str, paths: Mapping[str, str]) -> str:
    for uri, path in paths.items():
        text = text.replace(uri, f"{path} ({uri})")
    return text


def shard_bodies(lists: ShardLists) -> Json:
    """Return the lists of shards as JSON."""
    return {
        field: [shard.ref.model_dump(exclude_none=True) for shard in shards]
        for field, shards in lists.items()
    }


@dataclass(frozen=True)
class LocalFile:
    """A local file, with size and modification time when it was opened."""

    path: Path
    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> "LocalFile":
        """Inspect a file. Raises InvalidArgument if it cannot be uploaded."""
        try:
            found = path.stat()
        except OSError as error:
            raise InvalidArgument(f"{path} cannot be read: {error.strerror}") from error
        if not path.is_file() or not found.st_size:
            raise InvalidArgument(
                f"{path} cannot be uploaded: it is {'empty' if path.is_file() else 'not a file'}"
            )
        return cls(path.resolve(), found.st_size, found.st_mtime_ns)


def digest_of(file: LocalFile) -> str:
    """Return the SHA-256 of a file, in hex. Raises OSError."""
    with file.path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def upload_key(name: str, digest: str) -> str:
    """Return the Idempotency-Key of an upload, derived from name and digest."""
    identity = f"{name}\0{digest}".encode("utf-8", "surrogateescape")
    return f"upload-{hashlib.sha256(identity).hexdigest()}"


def check_unchanged(file: LocalFile) -> None:
    """Raises CmclError if the file is not as it was when it was opened."""
    if LocalFile.of(file.path) != file:
        raise CmclError(f"{file.path} changed during the upload; upload it again")


def check_digest(file: LocalFile, digest: str, complete: Upload) -> None:
    """Raises CmclError if the service received other bytes."""
    if complete.sha256 not in (None, digest):
        raise CmclError(
            f"{file.path} changed during the upload, or arrived damaged; abort upload "
            f"{complete.id} and upload the file again"
        )
