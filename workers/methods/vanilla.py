"""No protection: the loss alone, in the original coordinates. The reason why the others exist."""

from workers.methods.port import Method


class Vanilla(Method):
    """Exactly what the port does by default."""
