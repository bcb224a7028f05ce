"""Zero-shot: nothing is learned."""

from dataclasses import dataclass

from cmcl.contract.model import ModelSpec
from workers.methods.method import Method, Solved, TrainingContext
from workers.model.memory import Memory
from workers.nullspace.centred import components
from workers.nullspace.moments import PairMoments
from workers.nullspace.two_folds import RIDGES, Choice


@dataclass(frozen=True)
class ZeroShot(Method):
    """Embeddings are the features themselves, as their encoders made them.

    This needs encoders that share a space, such as those of ImageBind: all widths must be that of the
    embeddings. Features of encoders that know nothing of each other have no score to begin with, and
    `from_spec` says so. The initial heads are the identity there.
    """

    temperature: float

    solves = True

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> "ZeroShot":
        """Raises ValueError if the features do not share a space with the embeddings."""
        if set(spec.widths.values()) != {spec.width}:
            widths = ", ".join(f"{name} {width}" for name, width in spec.widths.items())
            raise ValueError(
                f"zero_shot needs features of one common space, as wide as the embeddings ({spec.width}); "
                f"these have the widths {widths}. Without training there is no score between them"
            )
        return cls(spec.training.temperature)

    def choose(self, halves: tuple[PairMoments, PairMoments]) -> Choice:
        # The memory needs a ridge of each modality. This method has none.
        return Choice((RIDGES[0], RIDGES[0]), 0.0)

    def solve(self, context: TrainingContext, memory: Memory) -> Solved:
        groups = tuple(components(memory.centred))
        weights = {name: context.heads.weights[name] for group in groups for name in group}
        return Solved(weights, 0.0, 0, self.temperature, context.heads.width, groups)
