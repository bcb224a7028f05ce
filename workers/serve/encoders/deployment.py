"""The Serve deployment of an encoder: its own processes, device and queue.

Shapes: B items, F width of the raw feature.
"""

import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import grpc
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util.metrics import Histogram

from workers.serve.encoders.client import EncoderClients
from workers.serve.encoders.port import Encoded, Encoders, EncoderUnavailable, NoEncoders
from workers.serve.encoders.queue import open_encoder
from workers.serve.encoders.spec import PASSES_AHEAD, EncoderSpec
from workers.serve.placement import ENCODER, at_most_per_node

Handle = DeploymentHandle[Any]

_ITEMS = [1.0, 2, 4, 8, 16, 32, 64, 128, 256, 512]
_SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10]


class EncoderReplica:
    """One process with one encoder."""

    def __init__(self, spec: EncoderSpec) -> None:
        """Load the encoder. Raises EncoderUnusable: Serve reports it as the reason why nothing starts."""
        logging.basicConfig(level=logging.INFO)
        self._labels = {"modality": spec.modality}
        self._items = _histogram("items", "Items in one pass.", _ITEMS)
        self._seconds = _histogram("seconds", "Duration of one pass.", _SECONDS)
        self._queue = open_encoder(spec, self._watch)

    async def encode(self, raw: list[str | bytes]) -> Encoded:
        """Features (B × F), or which item is unreadable."""
        return await self._queue.encode(raw)

    def _watch(self, items: int, seconds: float) -> None:
        self._items.observe(items, self._labels)
        self._seconds.observe(seconds, self._labels)


def encoder_applications(
    specs: Sequence[EncoderSpec], *, own_nodes: bool = False
) -> dict[str, serve.Application]:
    """Return the applications to bind the endpoint to, by modality; replicas get handles of them."""
    return {spec.modality: _application(spec, own_nodes=own_nodes) for spec in specs}


def encoders_behind(specs: Sequence[EncoderSpec], handles: Mapping[str, Handle]) -> Encoders:
    """The encoders, as a replica of the endpoint reaches them."""
    if not specs:
        return NoEncoders()
    return EncoderClients(specs, {name: _Hop(name, handle) for name, handle in handles.items()})


class _Hop:
    """`Ask` through Serve."""

    def __init__(self, modality: str, handle: Handle) -> None:
        self._modality = modality
        self._handle = handle

    async def __call__(self, raw: Sequence[str | bytes]) -> Encoded:
        try:
            encoded: Encoded = await self._handle.encode.remote(list(raw))
        except (RayActorError, RayServeException, grpc.aio.AioRpcError) as error:
            raise EncoderUnavailable(f"the encoder of {self._modality!r} is unavailable") from error
        return encoded


def _application(spec: EncoderSpec, *, own_nodes: bool) -> serve.Application:
    deployment = _ENCODER.options(
        name=f"Encoder-{spec.modality}",
        num_replicas=spec.replicas,
        max_ongoing_requests=PASSES_AHEAD * spec.max_batch,
        # A second process beside the old one needs a second GPU, which may not be available.
        max_surge_percent=0 if spec.num_gpus else 100,
        ray_actor_options={
            **_place(spec, own_nodes=own_nodes),
            "num_gpus": spec.num_gpus,
            "runtime_env": {"env_vars": _environment(spec)},
        },
    )
    return deployment.bind(spec)


def _place(spec: EncoderSpec, *, own_nodes: bool) -> dict[str, Any]:
    if not own_nodes:
        return {"num_cpus": spec.num_cpus}
    generation = sha256(spec.model_dump_json().encode()).hexdigest()[:16]
    return at_most_per_node(ENCODER, 1, generation)


def _environment(spec: EncoderSpec) -> dict[str, str]:
    """Environment variables that libraries read when they are imported."""
    offline = {} if spec.download else {"HF_HUB_OFFLINE": "1"}
    return {**offline, "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}


def _histogram(name: str, description: str, boundaries: list[float]) -> Histogram:
    return Histogram(f"cmcl_encoder_{name}", description, boundaries, tag_keys=("modality",))


_ENCODER: serve.Deployment = serve.deployment(health_check_period_s=5)(EncoderReplica)
