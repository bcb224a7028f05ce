"""A local stack that starts nothing."""

from cmcl.stack import LocalStack


class RecordingStack(LocalStack):
    """Records processes instead of starting them."""

    def _spawn(self, name: str, command: list[str], **environment: str) -> None:
        self.arguments = [
            *command,
            *(f"{key}={value}" for key, value in {**self._environment(), **environment}.items()),
        ]
