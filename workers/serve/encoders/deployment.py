"""The Serve deployment of an encoder: its own processes, device and queue.

Shapes: B items, F width of the raw feature.
"""

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import Any

import grpc
import numpy as np
from ray import serve
from ray._raylet import IMPLICIT_RESOURCE_PREFIX  # type: ignore[attr-defined]  # compiled
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util.metrics import Histogram

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from cmcl.memory import release_memory_every
from cmcl.storage.uris import open_store
from workers.serve.encoders.client import PASSES_AHEAD, EncoderClient
from workers.serve.encoders.port import Encoded, EncodedParts, EncoderUnavailable, Raw, Wanted

Handle = DeploymentHandle[Any]

# An encoder keeps what a pass has freed for the next one, also when there is none.
_RELEASE_SECONDS = 20.0
_SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10]
# Resources that only nodes of replicas, or of encoders, have.
REPLICA, ENCODER = "cmcl_replica", "cmcl_encoder"
# Ray counts in ten-thousandths, and rounds: exact for up to a hundred on a node.
_GRAIN = 10_000


class EncoderReplica:
    """One process with one encoder."""

    def __init__(self, spec: EncoderSpec, store: str) -> None:
        """Load the encoder. `store`: URI of the object storage, which has the records of identities.

        Raises EncoderUnusable: Serve reports it as the reason why nothing starts.
        """
        # Imported here: replicas of the endpoint import this module as well, and need neither models nor
        # decoders.
        from workers.encoders.port import load_encoder
        from workers.serve.encoders.decoding import FileReader
        from workers.serve.encoders.queue import EncoderQueue, IdentityCheck

        logging.basicConfig(level=logging.INFO)
        release_memory_every(_RELEASE_SECONDS)
        self._labels = {"encoder": spec.name}
        self._seconds = Histogram(
            "cmcl_encoder_seconds", "Duration of one pass.", _SECONDS, tag_keys=("encoder",)
        )
        self._width = spec.width
        encoder = load_encoder(spec)
        # Texts and numbers need no child: no library parses them.
        is_of_files = spec.takes in ("image", "audio", "video")
        self._files = FileReader(encoder) if is_of_files else None
        self._queue = EncoderQueue(encoder, self._files or encoder.read, spec, self._watch)
        self._identity = IdentityCheck(encoder, open_store(store), self._queue.between_passes)
        self._identity.check_now()

    async def encode(self, raw: list[Raw], expected: EncoderIdentity | None) -> Encoded:
        """Return features (B × F), or which item is unreadable, or why the encoder must not be used."""
        if (refusal := await self._identity.refusal(expected)) is not None:
            return refusal
        if not raw:
            return np.empty((0, self._width), np.float32)
        return await self._queue.encode(raw)

    async def encode_parts(
        self, file: bytes, expected: EncoderIdentity | None, wanted: Wanted
    ) -> EncodedParts:
        """Return a file, or the windows that cover it, with features (F); or as `encode`."""
        if (refusal := await self._identity.refusal(expected)) is not None:
            return refusal
        assert self._files is not None  # `EncoderClient` sends files to no other encoder
        return await self._queue.encode_parts(file, partial(self._files.parts, wanted=wanted))

    def _watch(self, seconds: float) -> None:
        self._seconds.observe(seconds, self._labels)


def encoder_applications(
    specs: Sequence[EncoderSpec], store: str, *, own_nodes: bool = False
) -> dict[str, serve.Application]:
    """Return the applications to bind the endpoint to, by name; replicas get handles of them."""
    return {spec.name: _application(spec, store, own_nodes=own_nodes) for spec in specs}


def encoders_behind(
    specs: Sequence[EncoderSpec], handles: Mapping[str, Handle]
) -> dict[str, EncoderClient]:
    """Return the encoders as a replica of the endpoint calls them, by name."""
    return {
        spec.name: EncoderClient(
            spec,
            _ServeCall(spec.name, handles[spec.name], "encode"),
            _ServeCall(spec.name, handles[spec.name], "encode_parts"),
        )
        for spec in specs
    }


class _ServeCall:
    """A `Call` or `PartsCall` through a handle of Serve."""

    def __init__(self, name: str, handle: Handle, method: str) -> None:
        self._name = name
        self._handle = handle
        self._method = method

    async def __call__(
        self, raw: Sequence[Raw] | bytes, expected: EncoderIdentity | None, *wanted: Wanted
    ) -> Any:
        given = raw if isinstance(raw, bytes) else list(raw)
        response = getattr(self._handle, self._method).remote(given, expected, *wanted)
        try:
            return await response
        except asyncio.CancelledError:
            # Serve tells the process nothing of a wait that was cancelled.
            response.cancel()
            raise
        except (RayActorError, RayServeException, grpc.aio.AioRpcError) as error:
            raise EncoderUnavailable(f"encoder {self._name!r} is unavailable") from error


def _application(spec: EncoderSpec, store: str, *, own_nodes: bool) -> serve.Application:
    from workers.encoders.port import environment  # as in EncoderReplica

    deployment = _ENCODER.options(
        name=f"Encoder-{spec.name}",
        num_replicas=spec.replicas,
        max_ongoing_requests=PASSES_AHEAD * spec.max_batch,
        # A second process beside the old one needs a second GPU, which may not be available.
        max_surge_percent=0 if spec.num_gpus else 100,
        ray_actor_options={
            **_place(spec, own_nodes=own_nodes),
            "num_gpus": spec.num_gpus,
            "runtime_env": {"env_vars": environment(spec)},
        },
    )
    return deployment.bind(spec, store)


def _place(spec: EncoderSpec, *, own_nodes: bool) -> dict[str, Any]:
    if not own_nodes:
        return {"num_cpus": spec.num_cpus, "resources": spec.resources}
    generation = sha256(spec.model_dump_json().encode()).hexdigest()[:16]
    place = at_most_per_node(ENCODER, 1, generation)
    return {**place, "resources": {**spec.resources, **place["resources"]}}


def at_most_per_node(resource: str, per_node: int, generation: str) -> dict[str, Any]:
    """Return the actor options of one of at most `per_node` of its generation on a node, in a cluster with nodes for it.

    It reserves one of that resource in place of CPUs, and ranks CPUs, which those nodes do not have, so that they do not
    displace each other. No node takes more than its share, which would leave nothing for a node that joins a moment
    later. Each generation is counted separately, so that new ones start beside old ones. `max_replicas_per_node` of
    Serve counts all together: an update found no space on full nodes, and never ended.
    """
    # Every node has one of each resource whose name begins with this prefix.
    counted = f"{IMPLICIT_RESOURCE_PREFIX}{resource}:{generation}"
    share = math.floor(_GRAIN / per_node) / _GRAIN
    return {"num_cpus": 0, "resources": {resource: 1, counted: share}}


_ENCODER: serve.Deployment = serve.deployment(health_check_period_s=5)(EncoderReplica)
