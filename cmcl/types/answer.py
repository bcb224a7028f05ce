"""What all answers have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Frozen. A newer service may tell more than this client knows: it is kept and printed.

    A field can also be read by its name, `job["state"]`, which is how those are read that have no
    attribute here yet.
    """

    # Built when first needed: most programs ask for few of them.
    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

    def __getitem__(self, name: str) -> Any:
        """Raises KeyError."""
        told = {**self.__dict__, **(self.__pydantic_extra__ or {})}
        return told[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The field of that name, or `default` where the service told none."""
        try:
            return self[name]
        except KeyError:
            return default
