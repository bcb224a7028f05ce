"""Which kinds of encoders there are."""

from importlib.util import find_spec

from workers.serve.encoders.batching import AnyQueue, EncoderQueue, Watch
from workers.serve.encoders.frozen import EncoderUnusable
from workers.serve.encoders.spec import EncoderSpec
from workers.serve.encoders.synthetic import SyntheticEncoder


def open_encoder(spec: EncoderSpec, watch: Watch) -> AnyQueue:
    """The encoder of this spec behind its queue, warm. Raises EncoderUnusable."""
    if spec.kind == "synthetic":
        return EncoderQueue(SyntheticEncoder(spec), spec, watch)
    if find_spec("sentence_transformers") is None:
        raise EncoderUnusable(
            f"the encoder of {spec.modality!r} is of kind sentence-transformers, and "
            "sentence-transformers is not installed on this node. The worker image has it, and so has "
            "a checkout after `make setup`; in an environment of your own: pip install "
            "sentence-transformers pillow"
        )
    # Here, because importing it takes seconds and is for the encoder's own process alone.
    from workers.serve.encoders.sentence_transformers import SentenceTransformersEncoder

    return EncoderQueue(SentenceTransformersEncoder(spec), spec, watch)
