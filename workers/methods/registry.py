"""From a model's spec to its method."""

from workers.contract.model import ModelSpec
from workers.methods.nullspace import Improve, Preserve
from workers.methods.port import Method
from workers.methods.vanilla import Vanilla


def method_for(spec: ModelSpec) -> Method:
    """The method that a model's spec names."""
    if spec.method == "nullspace":
        return _nullspace(spec)
    return Vanilla()


def _nullspace(spec: ModelSpec) -> Method:
    protection = spec.protection
    preserve = Preserve(protection.energy, protection.stable_index)
    if protection.policy == "preserve":
        return preserve
    return Improve(preserve.kept_energy, preserve.stable_index, protection.replay_weight)
