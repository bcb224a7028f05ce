"""From object storage to a version that can answer: digests, shapes and self-test checked.

Shapes: B rows, F width of the raw feature, E width of the embeddings, W any of these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
import torch
from numpy.typing import NDArray

from cmcl.contract.errors import InvalidVersion, ObjectNotFound
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import VersionManifest
from workers.model.artifact import check_selftest, load_heads, load_selftest
from workers.model.heads import ModalityHeads
from workers.serve.compute.heads import ServingHead, unit_length
from workers.storage import layout
from workers.storage.port import ObjectStore
from workers.storage.versions import considerate_sha256_of, read_version, read_version_file

Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class ServedVersion:
    """A verified version; immutable, so that a request can hold on to it while others swap.

    `pairs`: what it has learned; scores across other pairs mean nothing. `lineage`: the versions
    that it grew from and itself, oldest first.
    """

    model: str
    number: int
    spec: ModelSpec
    heads: ModalityHeads
    created_at: datetime
    pairs: frozenset[ModalityPair] = frozenset()
    lineage: tuple[int, ...] = ()
    serving: Mapping[str, ServingHead] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        laid_out = {name: ServingHead.of(self.heads, name) for name in self.heads.weights}
        object.__setattr__(self, "serving", laid_out)

    def head(self, modality: str) -> ServingHead:
        """The head of this modality, laid out for serving. Raises KeyError."""
        return self.serving[modality]

    def sharing(self, others: Sequence["ServedVersion"]) -> "ServedVersion":
        """The same; heads and maps that one of the others has, too, are held once for both."""
        return replace(self, heads=self.heads.sharing([each.heads for each in others]))

    @property
    def label(self) -> str:
        """As users write it: `name@number`."""
        return f"{self.model}@{self.number}"


def load_version(store: ObjectStore, model: str, number: int) -> ServedVersion:
    """A published version, verified and warm: the self-test has run through every head.

    Raises ObjectNotFound where it was never published, InvalidVersion or DigestMismatch where it
    cannot be used, StorageUnavailable.
    """
    manifest = read_version(store, model, number)
    if (manifest.model, manifest.version) != (model, number):
        raise InvalidVersion(
            f"the manifest of {model}@{number} is that of {manifest.model}@{manifest.version}"
        )
    heads = load_heads(_file(store, manifest, layout.HEADS), manifest.spec)
    pairs = frozenset(learned.pair for learned in manifest.learned)
    lineage = tuple(learned.version for learned in manifest.learned)
    version = ServedVersion(
        model, number, manifest.spec, heads, manifest.created_at, pairs, lineage
    )
    _test(version, _file(store, manifest, layout.SELFTEST))
    return version


def _file(store: ObjectStore, manifest: VersionManifest, name: str) -> bytes:
    """The manifest is written last, so a file that is missing means damage, not "not yet"."""
    if name not in manifest.files:
        raise InvalidVersion(f"the manifest of {manifest.model}@{manifest.version} names no {name}")
    try:
        return read_version_file(store, manifest, name, considerate_sha256_of)
    except ObjectNotFound as error:
        raise InvalidVersion(f"{manifest.model}@{manifest.version}: {error}") from error


@torch.inference_mode()
def _test(version: ServedVersion, selftest: bytes) -> None:
    """As requests will ask: through the heads laid out for serving."""
    for modality, (features_BF, expected_BE) in load_selftest(selftest, version.serving).items():
        try:
            given_BE = unit_length(version.head(modality).outputs(features_BF))
            check_selftest(modality, given_BE, expected_BE)
        except RuntimeError as error:  # torch's word for widths that do not fit together
            raise InvalidVersion(f"the self-test does not fit the heads: {error}") from error
