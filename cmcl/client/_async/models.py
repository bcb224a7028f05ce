"""Calls about models, versions, promotions and trials."""

from collections.abc import AsyncIterator

import httpx

from cmcl.client._async.session import Calls
from cmcl.client.registry import (
    Canary,
    Live,
    Model,
    Policy,
    Promotion,
    Version,
    VersionSummary,
)
from cmcl.client.wire import Request, posted_reason, read, revision_of, segment
from cmcl.contract.model import ModelSpec
from cmcl.contract.policy import GatePolicy
from cmcl.contract.rollout import CanaryPlan


class ModelCalls(Calls):
    """Calls about models and versions."""

    async def create_model(self, name: str, spec: ModelSpec) -> Model:
        """Create a model. Repeating the call with the same specification returns the same model."""
        return await self._session.post(
            Model, "/v1/models", {"name": name, **spec.model_dump(mode="json")}
        )

    def models(self) -> AsyncIterator[Model]:
        """Iterate over all models, by name."""
        return self._session.pages(Model, "/v1/models")

    async def model(self, name: str) -> Model:
        """Return a model."""
        return await self._session.get(Model, _path(name))

    async def branch_model(self, model: str, version: int, name: str) -> Model:
        """Create the model `name` from the versions of `model` up to `version`."""
        body = {"name": name, "version": version}
        return await self._session.post(Model, f"{_path(model)}/branch", body)

    async def delete_model(self, name: str) -> None:
        """Delete a model with all its versions. Fails while a job of the model is unfinished."""
        await self._session.delete(_path(name))

    async def policy(self, model: str) -> Policy:
        """Return the policy, which a candidate must meet before it is published."""
        response = await self._session.send(Request("GET", f"{_path(model)}/policy"))
        return _with_revision(read(Policy, response), response)

    async def set_policy(
        self, model: str, policy: GatePolicy, if_revision: int | None = None
    ) -> Policy:
        """Replace the policy. With `if_revision`, fails with 412 if the revision has changed."""
        body = policy.model_dump(mode="json")
        changed, response = await self._session.put(
            Policy, f"{_path(model)}/policy", body, if_revision
        )
        return _with_revision(changed, response)

    def versions(self, model: str) -> AsyncIterator[VersionSummary]:
        """Iterate over the versions of a model, oldest first."""
        return self._session.pages(VersionSummary, f"{_path(model)}/versions")

    async def version(self, model: str, number: int) -> Version:
        """Return a version with certificate, evaluation matrix, capacity, lineage and manifest."""
        return await self._session.get(Version, f"{_path(model)}/versions/{number}")

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

    def promotions(self, model: str) -> AsyncIterator[Promotion]:
        """Iterate over the changes of the live version, oldest first."""
        return self._session.pages(Promotion, f"{_path(model)}/promotions")

    async def candidate(self, model: str) -> Canary:
        """Return the version on trial, with its comparison with the live version."""
        return await self._session.get(Canary, f"{_path(model)}/candidate")

    async def set_candidate(
        self,
        model: str,
        version: int,
        plan: CanaryPlan,
        reason: str = "",
        if_generation: int | None = None,
    ) -> Canary:
        """Start a trial of a version, or change the current trial.

        With `if_generation`, fails with 412 if another promotion happened.
        """
        body = {"version": version, **plan.model_dump(mode="json"), **posted_reason(reason)}
        path = f"{_path(model)}/candidate"
        changed, _ = await self._session.put(Canary, path, body, if_generation)
        return changed

    async def end_candidate(self, model: str, reason: str = "") -> None:
        """End the trial. The version is kept but no longer serves requests."""
        await self._session.delete(f"{_path(model)}/candidate", posted_reason(reason))


def _path(model: str) -> str:
    return f"/v1/models/{segment(model)}"


def _with_revision(policy: Policy, response: httpx.Response) -> Policy:
    return policy.model_copy(update={"revision": revision_of(response)})
