"""Calls about models, versions and promotions."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx

from cmcl.client._async.session import Calls
from cmcl.client.wire import Order, Request, given, posted_reason, read, revision_of, segment
from cmcl.contract.api.jobs import Job
from cmcl.contract.api.models import Encoder, Model, ModelGate, ModelSummary, QueryDrift
from cmcl.contract.api.versions import (
    Live,
    ModelCapacity,
    Promotion,
    Version,
    VersionSummary,
)
from cmcl.contract.model import Gate, ModelSpec


class ModelCalls(Calls):
    """Calls about models and versions."""

    def encoders(self) -> AsyncIterator[Encoder]:
        """Iterate over the encoders that the operator declared."""
        return self._session.pages(Encoder, "/v1/encoders")

    async def create_model(self, name: str, spec: ModelSpec | Mapping[str, Any]) -> Model:
        """Create a model. Repeating the call with the same specification returns the same model.

        `spec` as a mapping may leave out the width of a modality that is bound to an encoder:
        `{"modalities": {"image": {"encoder": "clip-image"}, "depth": 640}}`.
        """
        body = spec.model_dump(mode="json") if isinstance(spec, ModelSpec) else spec
        return await self._session.post(Model, "/v1/models", {"name": name, **body})

    def models(self, order: Order = "asc") -> AsyncIterator[Model]:
        """Iterate over all models, by name; `order="desc"`: in reverse."""
        return self._session.pages(Model, "/v1/models", given(order=order))

    async def model(self, name: str) -> Model:
        """Return a model."""
        return await self._session.get(Model, _path(name))

    async def summary(self, model: str) -> ModelSummary:
        """Return a model at a glance: live and newest version, jobs, drift, room."""
        return await self._session.get(ModelSummary, f"{_path(model)}/summary")

    async def query_drift(self, model: str) -> QueryDrift:
        """Return how far queries lie from what the model has learned, by modality."""
        return await self._session.get(QueryDrift, f"{_path(model)}/drift")

    def overview(self, order: Order = "asc") -> AsyncIterator[ModelSummary]:
        """Iterate over the summaries of all models, by name."""
        return self._session.pages(ModelSummary, "/v1/overview", given(order=order))

    async def add_modality(
        self,
        model: str,
        modality: str,
        width: int | None = None,
        encoder: str | None = None,
        aligned_to: str | None = None,
    ) -> Model:
        """Add a modality to a model. Adding the same one again returns the model as it is.

        `width`: of its features; by default that of `encoder`, the name of a declared one. `aligned_to`: the modality of
        the same items by another encoder, whose embeddings its head shall reproduce.
        """
        path = f"{_path(model)}/modalities/{segment(modality)}"
        body = {"width": width, "encoder": encoder, "aligned_to": aligned_to}
        found, _ = await self._session.put(Model, path, body)
        return found

    async def branch_model(self, model: str, version: int, name: str) -> Model:
        """Create the model `name` from the versions of `model` up to `version`."""
        body = {"name": name, "version": version}
        return await self._session.post(Model, f"{_path(model)}/branch", body)

    async def merge_model(self, model: str, source: str) -> Job:
        """Start a job that adds the datasets of `source` (`model@version`) to the model, and return it.

        It reads no rows and leaves the other model as it is; `watch` follows it. Fails with 409 if the two cannot be
        merged.
        """
        return await self._session.post(Job, f"{_path(model)}/merge", {"from": source})

    async def delete_model(self, name: str) -> None:
        """Delete a model with all its versions. Fails while a job of the model is unfinished."""
        await self._session.delete(_path(name))

    async def gate(self, model: str) -> ModelGate:
        """Return the gate, which a candidate must meet before it is published."""
        response = await self._session.send(Request("GET", f"{_path(model)}/gate"))
        return _with_revision(read(ModelGate, response), response)

    async def set_gate(self, model: str, gate: Gate, if_revision: int | None = None) -> ModelGate:
        """Replace the gate. With `if_revision`, fails with 412 if the revision has changed."""
        body = gate.model_dump(mode="json")
        changed, response = await self._session.put(
            ModelGate, f"{_path(model)}/gate", body, if_revision
        )
        return _with_revision(changed, response)

    def versions(
        self, model: str, order: Order = "asc", *, by_dataset: bool = False
    ) -> AsyncIterator[VersionSummary]:
        """Iterate over the versions of a model and their measurements; `order="desc"`: newest first.

        `by_dataset`: also those of each dataset, which take ten times as long.
        """
        params = given(order=order, by_dataset=str(by_dataset).lower())
        return self._session.pages(VersionSummary, f"{_path(model)}/versions", params)

    async def version(self, model: str, number: int) -> Version:
        """Return a version with certificate, evaluation matrix, capacity, lineage and manifest."""
        return await self._session.get(Version, f"{_path(model)}/versions/{number}")

    async def capacity(self, model: str, limit: int = 200) -> ModelCapacity:
        """Return how full each head is, how it filled over the newest `limit` versions, and a forecast."""
        request = Request("GET", f"{_path(model)}/capacity", params={"limit": str(limit)})
        return read(ModelCapacity, await self._session.send(request))

    async def retire_version(self, model: str, number: int) -> None:
        """Retire a version. Fails for the newest and the live version."""
        await self._session.delete(f"{_path(model)}/versions/{number}")

    async def live(self, model: str) -> Live:
        """Return the live version, which serves queries."""
        return await self._session.get(Live, f"{_path(model)}/live")

    async def promote(
        self, model: str, version: int, reason: str = "", if_generation: int | None = None
    ) -> Live:
        """Make a version live. With `if_generation`, fails with 412 if another promotion happened."""
        body = {"version": version, **posted_reason(reason)}
        changed, _ = await self._session.put(Live, f"{_path(model)}/live", body, if_generation)
        return changed

    async def roll_back(
        self, model: str, reason: str = "", if_generation: int | None = None
    ) -> Live:
        """Make the previously live version live again."""
        body = posted_reason(reason)
        return await self._session.post(
            Live, f"{_path(model)}/rollback", body, if_match=if_generation
        )

    def promotions(self, model: str, order: Order = "asc") -> AsyncIterator[Promotion]:
        """Iterate over the changes of the live version; `order="desc"`: newest first."""
        return self._session.pages(Promotion, f"{_path(model)}/promotions", given(order=order))


def _path(model: str) -> str:
    return f"/v1/models/{segment(model)}"


def _with_revision(gate: ModelGate, response: httpx.Response) -> ModelGate:
    return gate.model_copy(update={"revision": revision_of(response)})
