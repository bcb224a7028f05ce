"""Preparation without Ray: functions of `workers.prepare.tasks` called in this process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cmcl.contract.dataset import DatasetManifest, ShardRef
from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.prepare import PrepareRequest
from cmcl.storage import layout
from cmcl.storage.datasets import read_dataset_manifest
from cmcl.storage.object_store import ObjectStore
from workers.encoders.identity import check_or_record
from workers.encoders.media import Decoded
from workers.encoders.port import FrozenEncoder, load_encoder
from workers.prepare.cluster import KNOWN_ERRORS, Check
from workers.prepare.dataset import Preparation, prepare_dataset
from workers.prepare.encoding import Encode, Encoded, LeasedEncoder, encode_batch
from workers.prepare.progress import DatasetProgress

T = TypeVar("T")
R = TypeVar("R")
Load = Callable[[EncoderSpec], FrozenEncoder[Any]]
FILE_MEMORY = 768 << 20


@dataclass(frozen=True)
class InlineLease(LeasedEncoder):
    """An encoder of this process: it encodes when its result is asked for. `batches`: sizes of those so far."""

    encoder: FrozenEncoder[Any]
    batches: list[int]

    def connect(self, first: int, what: str) -> Encode:
        """See LeasedEncoder."""

        def encode(items: Sequence[Decoded]) -> Callable[[], Encoded]:
            self.batches.append(len(items))
            return partial(encode_batch, self.encoder, list(items))

        return encode


@dataclass
class InlineCluster:
    """Runs one call after another. `before`: called before each unit, and may raise. `load`: makes encoders."""

    store: ObjectStore
    load: Load = load_encoder
    before: Callable[[Any], None] = lambda _: None
    batches: list[int] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    file_memory: int = FILE_MEMORY
    identities: dict[str, EncoderIdentity] = field(default_factory=dict)

    def run(self, function: Callable[..., R], *arguments: Any, check: Check) -> R:
        """See Cluster."""
        check("")
        self.calls.append(function.__name__)
        return function(*arguments)

    def map(
        self,
        function: Callable[[Any, T], Iterator[R]],
        common: Any,
        items: Sequence[T],
        *,
        check: Check,
    ) -> Iterator[tuple[T, R | Exception]]:
        """See Cluster. In reverse order: callers must not depend on it."""
        for item in reversed(items):
            try:
                self.before(item)
                for step in self.run(function, common, item, check=check):
                    yield item, step
            except KNOWN_ERRORS as error:
                yield item, error

    @contextmanager
    def lease(self, spec: EncoderSpec, units: int, check: Check) -> Iterator[LeasedEncoder]:
        """See Cluster."""
        encoder = self.load(spec)
        check_or_record(encoder, self.store)
        identity = self.identities[spec.model_dump_json()] = encoder.identity()
        yield InlineLease(spec, identity, ("inline",), encoder, self.batches)

    def identity_of(self, spec: EncoderSpec) -> EncoderIdentity | None:
        """See Cluster."""
        return self.identities.get(spec.model_dump_json())


@dataclass
class Ground:
    """A store, and a permitted folder with files of users."""

    store: ObjectStore
    folder: Path
    spec: ModelSpec

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.cluster = InlineCluster(self.store)

    def ref(self, name: str) -> ShardRef:
        """A file of the folder."""
        return ShardRef(uri=(self.folder / name).resolve().as_uri())

    def request(self, *names: str, **fields: Any) -> PrepareRequest:
        """A request with these files, which is put into the store."""
        named = {
            "dataset": "ds-0123456789ab",
            "request": 0,
            "owner": "ann",
            "model": "scenes",
            "name": "one",
            "spec": self.spec,
            "pair": ModalityPair(first="image", second="text"),
            "shards": tuple(self.ref(name) for name in names),
            "allowed_prefixes": (self.folder.resolve().as_uri(),),
        }
        request = PrepareRequest.model_validate({**named, **fields})
        key = layout.preparation_request(request.dataset)
        self.store.put(key, request.model_dump_json().encode())
        return request

    def prepare(self, request: PrepareRequest) -> DatasetManifest:
        """The manifest of the prepared dataset. Raises as `prepare_dataset`."""
        progress = DatasetProgress(
            request.dataset, request.request, traceparent=request.traceparent
        )
        prepare_dataset(Preparation(self.store, request, self.cluster, progress))
        manifest = read_dataset_manifest(self.store, request.dataset)
        assert manifest is not None
        return manifest
