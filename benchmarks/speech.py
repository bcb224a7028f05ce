"""Is a sentence found in an hour of speech, at the second at which it is said?

`python -m benchmarks.speech` needs espeak-ng, which speaks, and the packages of examples/encoders. A model learns
sentences in six voices with their texts. Then other sentences of the same words are said one after the other, and each
is searched by its text among the windows of that recording, as a collection with `"parts": true` has them.
"""

import argparse
import io
import random
import shutil
import subprocess
import sys
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import soundfile

from benchmarks.chain import Dataset
from benchmarks.command_line import (
    OneLineParser,
    add_out,
    count,
    counts,
    listed,
    log_progress,
    publish,
    table,
)
from benchmarks.few_pairs import improved
from benchmarks.report import machine
from cmcl.contract.encoder import EncoderSpec
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from workers.encoders.decoding import decode_parts
from workers.encoders.port import Float32Array, FrozenEncoder, load_encoder
from workers.files.shards import Rows
from workers.nullspace.threads import one_thread
from workers.train.dataset import paired_rows
from workers.train.evaluation import held_out

_WORDS = [
    line.split()
    for line in (
        "old young happy angry quiet clever hungry tired brave gentle",
        "farmer doctor teacher captain baker painter soldier sister neighbour driver",
        "carries paints repairs watches forgets follows washes sells buys draws",
        "red wooden heavy broken yellow silver empty tiny golden frozen",
        "boat guitar window basket bicycle candle mirror blanket ladder camera",
        "river church station mountain garden kitchen market bridge library harbour",
    )
]
_VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-us+f2", "en-gb+m3", "en-us+f4")
_RANKS = (1, 5, 10, 50)
_PAUSE_SECONDS = 0.3
_SPEECH = EncoderSpec(
    name="speech",
    kind="cmcl_example_encoders.speech:SpeechEmbedding",
    takes="audio",
    width=192,
    window_seconds=4,
    max_seconds=86_400,
    max_item_bytes=256 << 20,
)
_TEXTS = EncoderSpec(
    name="minilm", kind="cmcl_example_encoders.minilm:MiniLM", takes="text", width=384
)
_MODEL = ModelSpec.model_validate(
    {"policy": "improve", "width": 256, "modalities": {"audio": 192, "text": 384}}
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0; 2 if the benchmark cannot start."""
    options = _options(arguments)
    most = max(options.pairs)
    sentences = _sentences(most + 20 * options.minutes)
    speech, texts = load_encoder(_SPEECH), load_encoder(_TEXTS)
    spoken = (_spoken(each, _VOICES[at % len(_VOICES)]) for at, each in enumerate(sentences[:most]))
    learned_BF = _features(speech, [speech.read(_wav(*each)) for each in spoken])
    recording, ends, said = _recording(sentences[most:], 60 * options.minutes)
    parts = [*decode_parts(_SPEECH, recording)]
    windows_BF = _features(speech, [speech.load(part.of) for part in parts])
    middles = [((part.start or 0) + (part.end or 0)) / 2 for part in parts]
    queries = [said[min(bisect(ends, middle), len(said) - 1)] for middle in middles]
    texts_BF, queries_BF = (
        _features(texts, [texts.load(each) for each in every])
        for every in (sentences[:most], queries)
    )
    held = held_out(Rows(windows_BF, queries_BF, None))
    pair, results = ModalityPair(first="audio", second="text"), []
    with one_thread():
        for pairs in options.pairs:
            few = paired_rows(Rows(learned_BF[:pairs], texts_BF[:pairs], None))
            audio_BE, text_BE = improved(_MODEL, Dataset("speech", pair, few, held), few)
            results.append({"pairs": pairs, **_found((text_BE @ audio_BE.mT).numpy())})
            log_progress(str(results[-1]))
    document = {
        "results": results,
        "windows": len(parts),
        "seconds": round(parts[-1].end or 0),
        "recording_bytes": len(recording),
        "machine": machine(),
    }
    publish(options, "speech", _page(document), document)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="python -m benchmarks.speech", description=__doc__)
    parser.add_argument("--pairs", type=counts, default=(250, 500, 1000, 2000), metavar="A,B,...")
    parser.add_argument("--minutes", type=count, default=60, help="of the recording (default: 60)")
    add_out(parser)
    options = parser.parse_args(arguments)
    if shutil.which("espeak-ng") is None:
        parser.error("espeak-ng is not installed; on Debian: apt-get install espeak-ng")
    return options


def _sentences(wanted: int) -> list[str]:
    """Return different sentences of the same words, in an order that does not depend on how many are wanted."""
    draws, found = random.Random(0), dict[str, None]()  # noqa: S311
    while len(found) < wanted:
        who, person, does, kind, thing, place = (draws.choice(words) for words in _WORDS)
        found[f"The {who} {person} {does} the {kind} {thing} near the {place}."] = None
    return [*found]


def _spoken(sentence: str, voice: str) -> tuple[Float32Array, int]:
    """Return samples (N) and their rate."""
    said = subprocess.run(
        ["espeak-ng", "-v", voice, "--stdout", sentence],  # noqa: S607
        capture_output=True,
        check=True,
    )
    samples_N, rate = soundfile.read(io.BytesIO(said.stdout), dtype="float32")
    return samples_N, int(rate)


def _wav(samples_N: Float32Array, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples_N, rate, format="WAV")
    return file.getvalue()


def _recording(sentences: Sequence[str], seconds: float) -> tuple[bytes, list[float], list[str]]:
    """Return one WAV of at least so many seconds, when each sentence in it ends, and the sentences."""
    pieces: list[Float32Array] = []
    length, rate = 0, 1
    for at, sentence in enumerate(sentences):
        samples_N, rate = _spoken(sentence, _VOICES[at % len(_VOICES)])
        pieces.append(np.pad(samples_N, (0, round(_PAUSE_SECONDS * rate))))
        length += len(pieces[-1])
        if length >= seconds * rate:
            break
    ends = [end / rate for end in accumulate(map(len, pieces))]
    return _wav(np.concatenate(pieces), rate), ends, [*sentences[: len(pieces)]]


def _features(encoder: FrozenEncoder[Any], items: Sequence[Any]) -> Float32Array:
    rows: list[Float32Array] = []
    step = encoder.spec.max_batch
    for start in range(0, len(items), step):
        rows.append(encoder.features(items[start : start + step]))
        if start % (10 * step) == 0:
            log_progress(f"{encoder.spec.name}: {start} of {len(items)}")
    return np.concatenate(rows)


def _found(scores_QW: Float32Array) -> dict[str, float]:
    """Return in how many of the searches the right window is among the first; ties count against it."""
    rank_Q = (scores_QW >= np.diag(scores_QW)[:, None]).sum(1)
    shares = {f"recall_at_{rank}": float((rank_Q <= rank).mean()) for rank in _RANKS}
    return {**shares, "median_rank": float(np.median(rank_Q))}


def _page(document: dict[str, Any]) -> str:
    names = [f"recall_at_{rank}" for rank in _RANKS]
    rows = [
        [each["pairs"], *(f"{100 * each[name]:.1f}" for name in names), f"{each['median_rank']:g}"]
        for each in document["results"]
    ]
    head = ["pairs", *(f"R@{rank}" for rank in _RANKS), "median rank"]
    found = f"{document['seconds']} s of speech, {document['windows']} windows"
    facts = listed(document["machine"])
    return f"# Speech searched by what is said\n\n{found}\n\n{table(head, rows)}\n\n## Machine\n{facts}\n"


if __name__ == "__main__":
    sys.exit(main())
