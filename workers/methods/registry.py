"""From the name in a model's spec to the method."""

from workers.contract.model import ModelSpec
from workers.methods.nullspace import NullSpace
from workers.methods.port import Method
from workers.methods.vanilla import Vanilla


def method_for(spec: ModelSpec) -> Method:
    """The method that a model's spec names."""
    match spec.method:
        case "nullspace":
            return NullSpace(spec.protection.kept_energy)
        case "vanilla":
            return Vanilla()
