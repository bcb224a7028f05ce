"""Build Infinity's model: a table, two linear maps and normalisation, with random weights.

Run by Infinity's interpreter, from the repository's root: `-m benchmarks.peers.infinity_model.build
FOLDER WIDTH WORDS`. Prints the time of the model alone.
"""

import json
import shutil
import sys
import time
from pathlib import Path
from statistics import median

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense

from benchmarks.peers.infinity_model.lookup import Lookup

_BATCHES = (1, 32, 256)
_REPEATS = 15


def main(folder: Path, width: int, words: int) -> None:
    """Write the model, load it as Infinity does, and time it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plain = torch.nn.Identity()
    maps = [Dense(width, width, activation_function=plain) for _ in range(2)]
    SentenceTransformer(modules=[Lookup(words, width), *maps], device="cpu").save(str(folder))
    shutil.copy(Path(__file__).with_name("lookup.py"), folder / "lookup.py")
    described = json.loads((folder / "modules.json").read_text())
    described[0]["type"] = "lookup.Lookup"
    (folder / "modules.json").write_text(json.dumps(described))
    again = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True).eval()
    # Infinity reads the kind of the model from it.
    (folder / "config.json").write_text(json.dumps({"architectures": ["Lookup"]}))
    print(json.dumps({batch: _seconds(again, batch) for batch in _BATCHES}))


@torch.inference_mode()
def _seconds(model: SentenceTransformer, batch: int) -> float:
    """Return the median time of the products alone, without tokenization."""
    features = model.tokenize([f"w{number}" for number in range(batch)])
    found = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        model.forward(dict(features))
        found.append(time.perf_counter() - begin)
    return median(found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
