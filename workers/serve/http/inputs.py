"""From what a request holds to embeddings by one version, whatever the modalities.

Shapes: B rows, F width of the raw feature, E width of the embeddings.
"""

import asyncio
import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.serve.compute.port import NO_TICKET, Ticket
from workers.serve.encoders.port import EncoderInfo, EncoderUnavailable, UnreadableItem
from workers.serve.errors import InvalidRequest, NotReady
from workers.serve.http.replica import Replica
from workers.serve.http.wire.requests import Item
from workers.serve.http.wire.rows import checked, from_base64, from_lists, width_of
from workers.serve.versions.loading import Float32Array, ServedVersion

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class ModalityRows:
    """Features of one modality (B × F), and where they stand among all rows of the request."""

    modality: str
    rows_BF: Float32Array
    positions_B: Positions


async def embed_items(
    replica: Replica,
    version: ServedVersion,
    items: Sequence[Item],
    *,
    normalize: bool = True,
    ticket: Ticket = NO_TICKET,
) -> Float32Array:
    """Embeddings (B × E) of items of any modalities, in their order.

    Raises InvalidRequest, NotReady, DeadlineExceeded.
    """
    parts = await features_of(replica, version, items)
    return await embed_parts(replica, version, parts, normalize=normalize, ticket=ticket)


async def features_of(
    replica: Replica, version: ServedVersion, items: Sequence[Item]
) -> list[ModalityRows]:
    """Features of the items, by modality: as they were sent, or by the encoder in front."""
    positions: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        positions.setdefault(item.modality, []).append(index)
    return [
        ModalityRows(
            modality,
            await _features(
                replica, version, modality, [items[index] for index in indices], indices
            ),
            np.array(indices),
        )
        for modality, indices in positions.items()
    ]


async def embed_parts(
    replica: Replica,
    version: ServedVersion,
    parts: Sequence[ModalityRows],
    *,
    normalize: bool = True,
    ticket: Ticket = NO_TICKET,
) -> Float32Array:
    """Embeddings (B × E) of all parts, each row at its position."""
    compute = replica.compute
    embedded = await asyncio.gather(
        *(
            compute.embed(version, part.modality, part.rows_BF, normalize=normalize, ticket=ticket)
            for part in parts
        )
    )
    if len(parts) == 1:
        return embedded[0]
    rows = sum(len(part.positions_B) for part in parts)
    together_BE = np.empty((rows, version.spec.width), np.float32)
    for part, embeddings_BE in zip(parts, embedded, strict=True):
        together_BE[part.positions_B] = embeddings_BE
    return together_BE


async def encoded(
    replica: Replica, version: ServedVersion, modality: str, raw: Sequence[str | bytes]
) -> Float32Array:
    """Features (B × F) by the encoder in front. Raises InvalidRequest, NotReady."""
    width = width_of(modality, version.spec)
    info = _encoder(replica, modality, of_text=isinstance(raw[0], str))
    if info.width != width:
        raise InvalidRequest(
            f"the encoder {info.name!r} gives features of width {info.width}, and modality "
            f"{modality!r} of {version.label} has {width}",
            "modality",
            "wrong_encoder",
        )
    try:
        return checked(await replica.encoders.encode(modality, raw))
    except UnreadableItem as error:
        message = f"input row {error.index} cannot be encoded: {error.reason}"
        raise InvalidRequest(message, "input", "unreadable_item") from error
    except EncoderUnavailable as error:
        message = f"the encoder of {modality!r} does not answer now; try again"
        raise NotReady(message, "input", "encoder_unavailable") from error


def _encoder(replica: Replica, modality: str, *, of_text: bool) -> EncoderInfo:
    info = replica.encoders.infos.get(modality)
    what = "texts" if of_text else "files"
    if info is None:
        raise InvalidRequest(
            f"no encoder is configured for modality {modality!r}; send features, not {what}",
            "input",
            "no_encoder",
        )
    if (info.raw == "text") != of_text:
        takes = "texts" if info.raw == "text" else "files"
        raise InvalidRequest(
            f"the encoder of modality {modality!r} takes {takes}, not {what}", "input", "no_encoder"
        )
    return info


async def _features(
    replica: Replica,
    version: ServedVersion,
    modality: str,
    items: Sequence[Item],
    indices: Sequence[int],
) -> Float32Array:
    """All items of one modality. They may be given in different ways."""
    width = width_of(modality, version.spec, field="input")
    rows_BF = np.empty((len(items), width), np.float32)
    by_raw: dict[type, list[int]] = {}
    raw: list[str | bytes] = []
    for place, (item, index) in enumerate(zip(items, indices, strict=True)):
        if item.feature is None:
            raw.append(item.text if item.text is not None else _file(item.data or "", index))
            by_raw.setdefault(type(raw[-1]), []).append(place)
        else:
            raw.append("")
            rows_BF[place] = _given(item.feature, index, modality, width)
    for places in by_raw.values():
        wanted = [raw[place] for place in places]
        rows_BF[places] = await encoded(replica, version, modality, wanted)
    return checked(rows_BF)


def _given(feature: list[float] | str, index: int, modality: str, width: int) -> Float32Array:
    if isinstance(feature, str):
        return from_base64(feature, index, modality, width)
    row_F: Float32Array = from_lists([feature], modality, width)[0]
    return row_F


def _file(data: str, index: int) -> bytes:
    try:
        return base64.b64decode(
            data.rpartition(",")[2] if data.startswith("data:") else data, validate=True
        )
    except (binascii.Error, ValueError) as error:
        message = f"input row {index} is not base64: {error}"
        raise InvalidRequest(message, "input", "invalid_base64") from error
