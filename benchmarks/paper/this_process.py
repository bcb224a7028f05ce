"""The cluster of the prepare stage, in this process: one unit after another, without Ray.

A benchmark that a researcher starts on one machine needs no pools of actors. Users' files are still parsed in
bounded child processes.

Shapes: B items of a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from cmcl.storage.object_store import ObjectStore
from workers.encoders.identity import check_or_record
from workers.encoders.port import FrozenEncoder, load_encoder
from workers.prepare.cluster import KNOWN_ERRORS, Check
from workers.prepare.encoding import Encode, LeasedEncoder, encode_batch

T = TypeVar("T")
R = TypeVar("R")
_FILE_MEMORY = 2 << 30


@dataclass(frozen=True)
class _Lease(LeasedEncoder):
    encoder: FrozenEncoder[Any]

    def connect(self, first: int, what: str) -> Encode:
        """See LeasedEncoder. A batch is encoded when its features are asked for."""
        return lambda items: partial(encode_batch, self.encoder, list(items))


@dataclass
class ThisProcess:
    """See `Cluster`. Encoders stay loaded. `store`: of the records of encoders."""

    store: ObjectStore
    file_memory: int = _FILE_MEMORY
    _loaded: dict[str, FrozenEncoder[Any]] = field(default_factory=dict)

    def run(self, function: Callable[..., R], *arguments: Any, check: Check) -> R:
        """See Cluster."""
        check("")
        return function(*arguments)

    def map(
        self,
        function: Callable[[Any, T], Iterator[R]],
        common: Any,
        items: Sequence[T],
        *,
        check: Check,
    ) -> Iterator[tuple[T, R | Exception]]:
        """See Cluster."""
        for item in items:
            check("")
            try:
                for step in function(common, item):
                    yield item, step
            except KNOWN_ERRORS as error:
                yield item, error

    @contextmanager
    def lease(
        self,
        spec: EncoderSpec,
        units: int,
        check: Check,
    ) -> Iterator[LeasedEncoder]:
        """See Cluster."""
        check("")
        encoder = self.loaded(spec)
        yield _Lease(spec, encoder.identity(), (), encoder)

    def identity_of(self, spec: EncoderSpec) -> EncoderIdentity | None:
        """See Cluster."""
        encoder = self._loaded.get(spec.name)
        return None if encoder is None else encoder.identity()

    def loaded(self, spec: EncoderSpec) -> FrozenEncoder[Any]:
        """Return the encoder, loaded and compared with its record. Raises EncoderUnusable, EncoderMismatch."""
        if spec.name not in self._loaded:
            encoder = load_encoder(spec)
            check_or_record(encoder, self.store)
            self._loaded[spec.name] = encoder
        return self._loaded[spec.name]
