"""Reading single values out of a registry."""

from prometheus_client import CollectorRegistry

from tests.fakes.control_plane import ControlPlane


def shown(plane: ControlPlane, name: str, **labels: str) -> float | None:
    """The value of cmcl_service_<name>; None if there is no such series."""
    return value(plane.context.metrics.registry, name, **labels)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    """The value of cmcl_service_<name> in a registry."""
    return registry.get_sample_value(f"cmcl_service_{name}", labels)
