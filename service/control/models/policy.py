"""What candidates of a model must show: set by people, one change at a time."""

from datetime import datetime

from sqlalchemy import Connection

from cmcl.contract.policy import GatePolicy
from service.control.lookup import get_model
from service.database.queries import events, models
from service.database.rows import Happening, ModelRecord
from service.errors import PreconditionFailed
from service.principal import Principal


def set_policy(
    connection: Connection,
    name: str,
    policy: GatePolicy,
    principal: Principal,
    now: datetime,
    seen_revision: int | None,
) -> ModelRecord:
    """The model with its new policy. Raises NotFound, and PreconditionFailed if it was changed."""
    models.lock(connection, name)
    model = get_model(connection, name, principal)
    if seen_revision is not None and seen_revision != model.policy_revision:
        raise PreconditionFailed(
            f"the policy of {name!r} has revision {model.policy_revision} by now, "
            f"not {seen_revision}; read it again"
        )
    models.set_policy(connection, name, policy, model.policy_revision)
    told = {"policy": policy.model_dump(mode="json"), "actor": principal.name}
    happening = Happening(kind="model.policy", owner=model.owner, model=name, data=told)
    events.tell(connection, happening, now)
    return get_model(connection, name, principal)
