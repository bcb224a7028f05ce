"""From the items of a request to embeddings by one version, of any modalities.

Shapes: B rows, F width of the raw feature, E width of the embeddings.
"""

import asyncio
import base64
import binascii
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.serve.api.context import Replica
from workers.serve.api.wire.collection_bodies import CollectionItem
from workers.serve.api.wire.requests import Item
from workers.serve.api.wire.rows import (
    checked,
    feature_label,
    from_base64,
    from_lists,
    width_of,
)
from workers.serve.batching.compute import NO_TICKET, Ticket
from workers.serve.encoders.port import EncoderInfo, EncoderUnavailable, UnreadableItem
from workers.serve.errors import InvalidRequest, NotReady, WrongRow
from workers.serve.versions.loading import Float32Array, ServedVersion

Positions = NDArray[np.int64]
# Items that are read before the event loop gets control.
_ITEMS_AT_ONCE = 128
# Of an item's id, in a message.
_LONGEST_NAME = 60


@dataclass(frozen=True)
class ModalityRows:
    """Features of one modality (B × F), and their positions among all rows of the request."""

    modality: str
    rows_BF: Float32Array
    positions_B: Positions


async def features_of(
    replica: Replica,
    version: ServedVersion,
    items: Sequence[Item],
    field: str = "input",
    *,
    tenant: str,
) -> list[ModalityRows]:
    """Return features of the items, by modality: as they were sent, or by the encoder.

    `field`: of the items in the body. `tenant`: whose share of the encoder they take. Raises InvalidRequest,
    NotReady, Overloaded.
    """
    positions: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        positions.setdefault(item.modality, []).append(index)
    return [
        ModalityRows(
            modality,
            await _features(replica, version, modality, _Placed(items, indices, field, tenant)),
            np.array(indices),
        )
        for modality, indices in positions.items()
    ]


def features_by_modality(parts: Iterable[ModalityRows]) -> dict[str, Float32Array]:
    """Return all rows of each modality."""
    found: dict[str, list[Float32Array]] = {}
    for part in parts:
        found.setdefault(part.modality, []).append(part.rows_BF)
    return {name: np.concatenate(each) if each[1:] else each[0] for name, each in found.items()}


async def embed_parts(
    replica: Replica,
    version: ServedVersion,
    parts: Sequence[ModalityRows],
    *,
    normalize: bool = True,
    ticket: Ticket = NO_TICKET,
) -> Float32Array:
    """Return embeddings (B × E) of all parts, each row at its position."""

    def embedded(part: ModalityRows) -> Coroutine[Any, Any, Float32Array]:
        return replica.compute.embed(
            version, part.modality, part.rows_BF, normalize=normalize, ticket=ticket
        )

    version = await replica.lookup.pinned(version)
    with replica.canaries.counting_failures(version):
        if len(parts) == 1:  # Saves a task, for almost all requests.
            return await embedded(parts[0])
        all_embedded = await asyncio.gather(*map(embedded, parts))
    rows = sum(len(part.positions_B) for part in parts)
    together_BE = np.empty((rows, version.spec.width), np.float32)
    for part, embeddings_BE in zip(parts, all_embedded, strict=True):
        together_BE[part.positions_B] = embeddings_BE
    return together_BE


async def encoded(
    replica: Replica,
    version: ServedVersion,
    modality: str,
    raw: Sequence[str | bytes],
    field: str = "input",
    *,
    tenant: str,
) -> Float32Array:
    """Return features (B × F) by the encoder. Raises InvalidRequest, NotReady, Overloaded."""
    width = width_of(modality, version.spec)
    info = _encoder(replica, modality, field, of_text=isinstance(raw[0], str))
    if info.width != width:
        raise InvalidRequest(
            f"the encoder {info.name!r} gives features of width {info.width}, and modality "
            f"{modality!r} of {version.label} has {width}",
            "modality",
            "wrong_encoder",
        )
    try:
        with replica.admission.at_encoder(modality, tenant, len(raw)):
            return checked(await replica.encoders.encode(modality, raw, tenant))
    except UnreadableItem as error:
        reason = f"cannot be encoded: {error.reason}"
        name = f"{field}[{error.index}]"
        raise WrongRow(error.index, reason, "unreadable_item", field, name) from error
    except EncoderUnavailable as error:
        message = f"the encoder of {modality!r} is unavailable; try again"
        raise NotReady(message, field, "encoder_unavailable") from error


def _encoder(replica: Replica, modality: str, field: str, *, of_text: bool) -> EncoderInfo:
    info = replica.encoders.infos.get(modality)
    what = "texts" if of_text else "files"
    if info is None:
        raise InvalidRequest(
            f"no encoder is configured for modality {modality!r}; send features, not {what}",
            field,
            "no_encoder",
        )
    if (info.raw == "text") != of_text:
        takes = "texts" if info.raw == "text" else "files"
        raise InvalidRequest(
            f"the encoder of modality {modality!r} takes {takes}, not {what}", field, "no_encoder"
        )
    return info


@dataclass(frozen=True)
class _Placed:
    """The items of one modality in a request, by their numbers in the field."""

    items: Sequence[Item]
    indices: Sequence[int]
    field: str
    tenant: str

    @contextmanager
    def naming(self, places: Sequence[int]) -> Iterator[None]:
        """Context manager that names refused rows, which are at these places, as the client does."""
        try:
            yield
        except WrongRow as error:
            index = self.indices[places[error.row]]
            item = self.items[index]
            name = f"{self.field}[{index}]"
            if isinstance(item, CollectionItem):
                name = f"item {item.id[:_LONGEST_NAME]!r}"
            raise error.at(index, self.field, name) from error


async def _features(
    replica: Replica, version: ServedVersion, modality: str, placed: _Placed
) -> Float32Array:
    """Return features of all items of one modality, which may be given in different ways."""
    width = width_of(modality, version.spec, placed.field)
    rows_BF = np.empty((len(placed.indices), width), np.float32)
    by_kind: dict[type, list[int]] = {}
    raw: dict[int, str | bytes] = {}
    packed: list[int] = []
    for place, index in enumerate(placed.indices):
        if place % _ITEMS_AT_ONCE == _ITEMS_AT_ONCE - 1:
            await asyncio.sleep(0)
        with placed.naming([place]):
            given = _given(placed.items[index], feature_label(modality), width)
        if isinstance(given, str | bytes):
            raw[place] = given
            by_kind.setdefault(type(given), []).append(place)
        else:
            rows_BF[place] = given
            packed.append(place)
    if packed:
        # All at once: checking each row separately would take a third of the time of the product.
        with placed.naming(packed):
            checked(rows_BF[packed])
    for places in by_kind.values():
        with placed.naming(places):
            wanted = [raw[place] for place in places]
            rows_BF[places] = await encoded(
                replica, version, modality, wanted, placed.field, tenant=placed.tenant
            )
    return rows_BF


def _given(item: Item, what: str, width: int) -> Float32Array | str | bytes:
    """Return the feature of an item, of the right width; or the raw item for the encoder."""
    if item.text is not None:
        return item.text
    if item.data is not None:
        return _file(item.data)
    if isinstance(item.feature, str):
        return from_base64(item.feature, 0, what, width)
    row_F: Float32Array = from_lists([item.feature or []], what, width)[0]
    return row_F


def _file(data: str) -> bytes:
    try:
        return base64.b64decode(
            data.rpartition(",")[2] if data.startswith("data:") else data, validate=True
        )
    except (binascii.Error, ValueError) as error:
        raise WrongRow(0, f"is not base64: {error}", "invalid_base64") from error
