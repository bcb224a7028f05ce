"""Find the method that a model's spec names."""

import importlib
from collections.abc import Callable, Mapping

from cmcl.contract.errors import UnknownMethod
from cmcl.contract.methods import BUILT_IN_METHODS, METHOD_ENTRY_POINTS, installed_methods
from cmcl.contract.model import ModelSpec
from workers.methods.closed_form import ClosedForm
from workers.methods.method import Method, Vanilla
from workers.methods.nullspace import Preserve, Replay
from workers.methods.paper import Paper


def method_for(spec: ModelSpec) -> Method:
    """The method that a model's spec names: built in, or an entry point of an installed package.

    Raises UnknownMethod.
    """
    built_in = _METHODS.get(spec.method)
    if built_in is not None:
        return built_in(spec)
    point = installed_methods().get(spec.method)
    if point is None:
        known = ", ".join([*BUILT_IN_METHODS, *installed_methods()])
        raise UnknownMethod(
            f"the method {spec.method!r} is not installed where this model is trained; known here: "
            f"{known}. Install the package that has it under the entry point group "
            f"{METHOD_ENTRY_POINTS!r} in the workers' image"
        )
    return method_class(point.value).from_spec(spec)


def method_class(place: str) -> type[Method]:
    """Import the method at `module:Class`. Raises UnknownMethod if there is none."""
    module, _, name = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownMethod(f"the method {place!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UnknownMethod(f"{place!r} is not a subclass of workers.methods.method.Method")
    return found


def _nullspace(spec: ModelSpec) -> Method:
    protection = spec.protection
    energy, stable_index = protection.kept_energy, protection.stable_index
    if spec.solves:
        return ClosedForm.from_spec(spec)
    if protection.policy == "preserve":
        return Preserve(energy, protection.drift_penalty, stable_index=stable_index)
    return Replay(energy, replay_weight=protection.replay_weight, stable_index=stable_index)


_METHODS: Mapping[str, Callable[[ModelSpec], Method]] = {
    "nullspace": _nullspace,
    "paper": Paper.from_spec,
    "vanilla": Vanilla.from_spec,
}
