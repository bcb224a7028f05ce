"""Models: made, branched, deleted, and which of their versions answers."""

from cmcl.contract.model import ModelSpec
from cmcl.contract.policy import GatePolicy
from cmcl.flow.api import Api, posted_reason, read, revision_of, segment
from cmcl.flow.effects import Exchange, Flow, Items
from cmcl.types import Live, Model, Policy, Promotion


def create_model(api: Api, name: str, spec: ModelSpec) -> Flow[Model]:
    """Create a model; the same name with the same specification answers the same model."""
    return api.post(Model, "/v1/models", {"name": name, **spec.model_dump(mode="json")})


def models(api: Api) -> Items[Model]:
    """All models, by name."""
    return api.pages(Model, "/v1/models")


def model(api: Api, name: str) -> Flow[Model]:
    """One model."""
    return api.get(Model, _path(name))


def branch_model(api: Api, model: str, version: int, name: str) -> Flow[Model]:
    """A new model `name` that has the versions of `model` up to `version`, and goes its own way."""
    return api.post(Model, f"{_path(model)}/branch", {"name": name, "version": version})


def delete_model(api: Api, name: str) -> Flow[None]:
    """Remove a model with all its versions; refused while a job of it has not ended."""
    return api.delete(_path(name))


def policy(api: Api, model: str) -> Flow[Policy]:
    """What a candidate must show before it is published."""
    response = yield from api.send(Exchange("GET", f"{_path(model)}/policy"))
    return _with_revision(read(Policy, response), revision_of(response))


def set_policy(
    api: Api, model: str, policy: GatePolicy, if_revision: int | None = None
) -> Flow[Policy]:
    """Overwrite the policy. `if_revision`: only if it is still the one that was read (else 412)."""
    body = policy.model_dump(mode="json")
    changed, response = yield from api.put(Policy, f"{_path(model)}/policy", body, if_revision)
    return _with_revision(changed, revision_of(response))


def live(api: Api, model: str) -> Flow[Live]:
    """The version that answers."""
    return api.get(Live, f"{_path(model)}/live")


def promote(
    api: Api, model: str, version: int, reason: str = "", if_generation: int | None = None
) -> Flow[Live]:
    """Let a version answer. `if_generation`: only if nobody promoted since (else 412)."""
    body = {"version": version, **posted_reason(reason)}
    changed, _ = yield from api.put(Live, f"{_path(model)}/live", body, if_generation)
    return changed


def roll_back(
    api: Api, model: str, reason: str = "", if_generation: int | None = None
) -> Flow[Live]:
    """Back to the version that was promoted before the one that answers."""
    body = posted_reason(reason)
    return api.post(Live, f"{_path(model)}/rollback", body, if_match=if_generation)


def promotions(api: Api, model: str) -> Items[Promotion]:
    """Each change of the version that answers, the first one first."""
    return api.pages(Promotion, f"{_path(model)}/promotions")


def _path(model: str) -> str:
    return f"/v1/models/{segment(model)}"


def _with_revision(policy: Policy, revision: int | None) -> Policy:
    return policy.model_copy(update={"revision": revision})
