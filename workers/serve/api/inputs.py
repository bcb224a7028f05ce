"""From the items of a request to embeddings by one version, of any modalities.

Raw items become features by the encoder that the version binds their modality to.

Shapes: B rows or items, F width of the raw feature, E width of the embeddings.
"""

import asyncio
import binascii
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pybase64
from numpy.typing import NDArray

from cmcl.contract.encoder import EncoderIdentity
from workers.encoders.parts import Part
from workers.encoders.port import EncoderMismatch
from workers.serve.api.context import Replica
from workers.serve.api.wire.collection_bodies import CollectionItem
from workers.serve.api.wire.requests import Item
from workers.serve.api.wire.vectors import (
    checked,
    feature_label,
    from_base64,
    from_lists,
    has_direction,
    width_of,
)
from workers.serve.batcher import NO_TICKET, Ticket
from workers.serve.encoders.client import EncoderClient, is_taken, kind_of, takes
from workers.serve.encoders.port import (
    EncoderTimeout,
    EncoderUnavailable,
    Raw,
    UnreadableItem,
    Wanted,
)
from workers.serve.errors import Conflict, InvalidRequest, NotReady, WrongRow, shortened
from workers.serve.versions.loading import Float32Array, ServedVersion

# Items that are read before the event loop gets control.
_ITEMS_AT_ONCE = 128
# Characters of an item's id in a message.
_LONGEST_NAME = 60


@dataclass(frozen=True)
class ModalityRows:
    """Features of one modality (B × F), and their positions among all rows of the request."""

    modality: str
    rows_BF: Float32Array
    positions_B: NDArray[np.int64]


def checked_dimensions(wanted: int | None, version: ServedVersion) -> int:
    """Return D: how many of the E numbers are wanted. Raises InvalidRequest."""
    width = version.spec.width
    if wanted is None or wanted == width:
        return width
    if wanted > width:
        permitted = f"{version.label} has {width}"
    elif not version.spec.solves:
        permitted = f"{version.label} has {width}, and no fewer: only heads of the policy improve order them"
    else:
        return wanted
    raise InvalidRequest(f"dimensions is {shortened(wanted)}; {permitted}", "dimensions")


async def encoded(
    replica: Replica,
    version: ServedVersion,
    modality: str,
    raw: Sequence[Raw],
    field: str = "input",
    *,
    owner: str,
) -> Float32Array:
    """Return features (B × F) by the encoder. All items are of one form; there is at least one.

    Raises InvalidRequest, Conflict, NotReady, Overloaded.
    """
    with _asking(replica, version, modality, raw, field, owner) as (encoder, expected):
        return checked(await encoder.encode(raw, owner, expected))


async def encoded_parts(
    replica: Replica, version: ServedVersion, item: CollectionItem, *, owner: str
) -> list[Part[Float32Array]]:
    """Return a file, or the windows that cover it, with features (F). Raises as `encoded` does."""
    name = _name(item, 0, "items")
    try:
        file = _file(item.data or "")
        with _asking(replica, version, item.modality, [file], "items", owner) as (
            encoder,
            expected,
        ):
            wanted = Wanted(item.parts, item.thumbnail is True)
            parts = await encoder.encode_parts(file, owner, expected, wanted)
            # Of some windows there may be nothing to tell, such as of silence.
            usable = [part for part in parts if has_direction(part.of)]
            checked(np.stack([part.of for part in usable or parts]))
            return usable
    except WrongRow as error:
        raise error.at(0, "items", name) from error


@contextmanager
def _asking(
    replica: Replica,
    version: ServedVersion,
    modality: str,
    raw: Sequence[Raw],
    field: str,
    owner: str,
) -> Iterator[tuple[EncoderClient, EncoderIdentity | None]]:
    """Admit items to their encoder, yield it with its expected identity, and translate its errors."""
    width_of(modality, version)
    encoder = _encoder(replica, version, modality, field)
    spec = encoder.spec
    if not is_taken(spec, raw[0]):
        reason = (
            f"is {kind_of(raw[0])}; {_named(version, modality)} takes {takes(spec)} or features"
        )
        raise WrongRow(0, reason, "wrong_media", field, f"{field}[0]")
    try:
        with replica.admission.at_encoder(spec.name, owner, len(raw)):
            yield encoder, version.encoders.get(modality)
    except UnreadableItem as error:
        reason = f"cannot be encoded: {error.reason}"
        name = f"{field}[{error.index}]"
        raise WrongRow(error.index, reason, "unreadable_item", field, name) from error
    except EncoderMismatch as error:
        raise _mismatch(version, modality, str(error), field) from error
    except EncoderTimeout as error:
        items, advice = (
            ("1 item", "try again") if len(raw) == 1 else (f"{len(raw)} items", "send fewer")
        )
        message = f"the encoder of modality {modality!r} gave no result within {error.seconds:g} s for {items}; {advice}"
        raise NotReady(message, field, "encoder_timeout") from error
    except EncoderUnavailable as error:
        message = f"the encoder of modality {modality!r} is unavailable; try again"
        raise NotReady(message, field, "encoder_unavailable") from error


async def check_encoder(replica: Replica, version: ServedVersion, modality: str) -> None:
    """Check that raw items of this modality would be encoded.

    Raises InvalidRequest, Conflict, EncoderMismatch, EncoderUnavailable.
    """
    encoder = _encoder(replica, version, modality, "modality")
    if (expected := version.encoders.get(modality)) is not None:
        await encoder.check(expected)


def _encoder(replica: Replica, version: ServedVersion, modality: str, field: str) -> EncoderClient:
    """The encoder that the modality is bound to. Raises InvalidRequest, Conflict."""
    bound = version.spec.modalities[modality].encoder
    if bound is None:
        raise InvalidRequest(
            f"{_named(version, modality)} takes features: it is bound to no encoder",
            field,
            "no_encoder",
        )
    encoder = replica.encoders.get(bound)
    # 409, not 503: only an operator can change it, so clients should not try again.
    if encoder is None:
        raise Conflict(
            f"{_named(version, modality)} is bound to encoder {bound!r}, which is not configured at this endpoint: send "
            "features, or ask the operator to configure it",
            field,
            "encoder_not_configured",
        )
    width = version.spec.widths[modality]
    if encoder.spec.width != width:
        reason = f"width is {encoder.spec.width}, expected {width}"
        raise _mismatch(version, modality, reason, field)
    return encoder


def _mismatch(version: ServedVersion, modality: str, reason: str, field: str) -> Conflict:
    bound = version.spec.modalities[modality].encoder
    return Conflict(
        f"encoder {bound!r} of this endpoint is not the one whose features {version.label} has learned "
        f"for modality {modality!r}: {reason}. Send features, or ask the operator for that encoder",
        field,
        "encoder_mismatch",
    )


def _named(version: ServedVersion, modality: str) -> str:
    return f"modality {modality!r} of model {version.model!r}"


async def features_of(
    replica: Replica,
    version: ServedVersion,
    items: Sequence[Item],
    field: str = "input",
    *,
    owner: str,
) -> list[ModalityRows]:
    """Return features of the items, by modality: as they were sent, or by the encoder.

    `field`: of the items in the body. `owner`: whose share of the encoder they take. Raises InvalidRequest,
    Conflict, NotReady, Overloaded.
    """
    return [
        await _features(replica, version, modality, items, field, owner)
        for modality in dict.fromkeys(item.modality for item in items)
    ]


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
        assert len(part.rows_BF) == len(part.positions_B)
        if replica.queries is not None:
            replica.queries.add(version, part.modality, part.rows_BF)
        return replica.batcher.embed(
            version, part.modality, part.rows_BF, normalize=normalize, ticket=ticket
        )

    version = await replica.lookup.pinned(version)
    if len(parts) == 1:  # Saves a task, for almost all requests.
        return await embedded(parts[0])
    all_embedded = await asyncio.gather(*map(embedded, parts))
    rows = sum(len(part.positions_B) for part in parts)
    assert {row for part in parts for row in part.positions_B.tolist()} == set(range(rows))
    together_BE = np.empty((rows, version.spec.width), np.float32)
    for part, embeddings_BE in zip(parts, all_embedded, strict=True):
        together_BE[part.positions_B] = embeddings_BE
    return together_BE


async def _features(
    replica: Replica,
    version: ServedVersion,
    modality: str,
    items: Sequence[Item],
    field: str,
    owner: str,
) -> ModalityRows:
    """Return features of the items of one modality, which may be given in different ways."""
    width, label = width_of(modality, version, field), feature_label(modality)
    indices = [index for index, item in enumerate(items) if item.modality == modality]
    rows_BF = np.empty((len(indices), width), np.float32)
    features: list[int] = []
    raw: dict[type, dict[int, Raw]] = {}
    # Places of the rows that are looked at, for the name of a wrong one.
    places: Sequence[int] = ()
    try:
        for place, index in enumerate(indices):
            if place % _ITEMS_AT_ONCE == _ITEMS_AT_ONCE - 1:
                await asyncio.sleep(0)
            places = (place,)
            given = _given(items[index], label, width)
            if isinstance(given, np.ndarray):
                rows_BF[place] = given
                features.append(place)
            else:
                raw.setdefault(type(given), {})[place] = given
        # All of a kind at once: checking each row separately would take a third of the time of the product.
        if features:
            places = features
            checked(rows_BF if len(features) == len(rows_BF) else rows_BF[features])
        for of_kind in raw.values():
            places = [*of_kind]
            rows_BF[places] = await encoded(
                replica, version, modality, [*of_kind.values()], field, owner=owner
            )
    except WrongRow as error:
        index = indices[places[error.row]]
        raise error.at(index, field, _name(items[index], index, field)) from error
    assert len(features) + sum(map(len, raw.values())) == len(indices), "rows without a feature"
    return ModalityRows(modality, rows_BF, np.array(indices))


def _name(item: Item, index: int, field: str) -> str:
    """What a client calls an item. A search has one query, and no list of them."""
    if isinstance(item, CollectionItem):
        return f"item {item.id[:_LONGEST_NAME]!r}"
    return field if field == "query" else f"{field}[{index}]"


def _given(item: Item, what: str, width: int) -> Float32Array | Raw:
    """Return the feature of an item, of the right width; or the raw item for the encoder."""
    if item.text is not None:
        return item.text
    if item.data is not None:
        return _file(item.data)
    if item.numbers is not None:
        return item.numbers
    if isinstance(item.feature, str):
        return from_base64(item.feature, 0, what, width)
    row_F: Float32Array = from_lists([item.feature or []], what, width)[0]
    return row_F


def _file(data: str) -> bytes:
    try:
        return pybase64.b64decode(
            data.rpartition(",")[2] if data.startswith("data:") else data, validate=True
        )
    except (binascii.Error, ValueError) as error:
        raise WrongRow(0, f"is not base64: {error}", "invalid_base64") from error
