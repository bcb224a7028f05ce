"""From a model's spec to its method."""

from collections.abc import Callable, Mapping

from cmcl.contract.model import MethodName, ModelSpec
from workers.methods.anchor import Anchor
from workers.methods.cflat import CFlat
from workers.methods.cila import CILA
from workers.methods.co2l import Co2L
from workers.methods.der import DER
from workers.methods.derpp import DERpp
from workers.methods.ewc import EWC
from workers.methods.gem import GEM
from workers.methods.nullspace import Improve, Preserve
from workers.methods.paper import Paper
from workers.methods.port import Method
from workers.methods.vanilla import Vanilla


def method_for(spec: ModelSpec) -> Method:
    """The method that a model's spec names."""
    return _METHODS[spec.method](spec)


def _nullspace(spec: ModelSpec) -> Method:
    protection = spec.protection
    energy, stable_index = protection.energy, protection.stable_index
    if protection.policy == "preserve":
        return Preserve(energy, protection.drift_penalty, stable_index=stable_index)
    return Improve(energy, replay_weight=protection.replay_weight, stable_index=stable_index)


_METHODS: Mapping[MethodName, Callable[[ModelSpec], Method]] = {
    "nullspace": _nullspace,
    "paper": lambda _: Paper(),
    "vanilla": lambda _: Vanilla(),
    "anchor": lambda _: Anchor(),
    "ewc": lambda _: EWC(),
    "gem": lambda _: GEM(),
    "der": lambda _: DER(),
    "derpp": lambda _: DERpp(),
    "co2l": lambda _: Co2L(),
    "cila": lambda _: CILA(),
    "cflat": lambda _: CFlat(),
}
