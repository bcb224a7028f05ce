"""A second protocol: continual text-to-video retrieval (CTVR, arXiv 2503.10111), from cached features.

Tasks are groups of categories of MSRVTT or ActivityNet; 16 videos of a category are learned. Queries of all tasks
so far are searched in the videos of all tasks so far. As published, a video keeps the embedding that it got when
its task was learned, and queries get that of the newest version: its authors store videos and do not index again.
The splits are their files (JasonCodeMaker/CTVR, folders data and datasets). Features are the user's.

Shapes: N rows of a task, F width of the features, Q queries, E width of the embeddings.
"""

import csv
import json
import pickle
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.chain import Dataset, learn_one, remember
from benchmarks.paper.sources.source import InvalidSource
from benchmarks.runs import place_of, spec_of
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from workers.methods.registry import method_class, method_for
from workers.model.evaluation import HeldOut
from workers.model.heads import ModalityHeads
from workers.model.rows import PairedRows, content_keys
from workers.train.certify import PastDataset
from workers.train.learn import initial_state

SETUPS = ("msrvtt-10", "msrvtt-20", "actnet-10", "actnet-20")
_PAIR = ModalityPair(first="text", second="video")
_BEST = (1, 5, 10)
# Published R@1 and backward forgetting of R@1, percent (its repository, commit 416f835).
PUBLISHED: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "msrvtt-10": {"untrained": (22.14, 0.0), "lwf": (23.85, 1.68), "zscl": (23.99, 0.10)},
    "msrvtt-20": {"untrained": (22.14, 0.0), "lwf": (22.06, 1.65), "zscl": (21.47, 0.91)},
    "actnet-10": {"untrained": (14.89, 0.0), "lwf": (17.56, 0.63), "zscl": (17.67, 0.35)},
    "actnet-20": {"untrained": (14.89, 0.0), "lwf": (16.36, 0.93), "zscl": (16.83, 0.70)},
}


@dataclass(frozen=True)
class Task:
    """Rows to train on, and the queries and videos of the test; query q belongs to video q."""

    name: str
    training: PairedRows
    queries_QF: Tensor
    videos_QF: Tensor


@dataclass(frozen=True)
class Outcome:
    """After the last task: R@1, R@5, R@10 over all queries, against stored embeddings of the videos and against
    new ones. `forgetting`: mean over earlier tasks of (R@1 when learned − R@1 now). Shares."""

    stored: tuple[float, float, float]
    again: tuple[float, float, float]
    forgetting: float
    seconds: float


class _Plain(pickle.Unpickler):
    """Dictionaries, lists, texts and numbers. Everything else could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Permit the two classes of the published files."""
        if (module, name) == ("collections", "defaultdict"):
            return defaultdict
        if (module, name) == ("builtins", "list"):
            return list
        raise pickle.UnpicklingError(f"it names {module}.{name}, which a split does not need")


def read_tasks(folder: Path, setup: str) -> list[Task]:
    """Read splits, captions and features. Raises InvalidSource."""
    dataset, _, count = setup.partition("-")
    splits = _splits(folder / f"{dataset.upper()}_{count}_dataset.pkl")
    captions = _msrvtt(folder) if dataset == "msrvtt" else _actnet(folder)
    videos, texts = _features(folder, "videos"), _features(folder, "texts")
    tasks = []
    for number in sorted(splits["train"]):
        pairs: dict[str, list[tuple[str, str]]] = {}
        for split in ("train", "val"):
            names = [name for kind in splits[split][number].values() for name in kind]
            pairs[split] = [
                (text, name) for name in names for text in _of(captions[split], name, "a caption")
            ]
        (first, second), tested = (
            (
                np.stack([_of(texts, text, "a feature in texts.npz") for text, _ in pairs[split]]),
                np.stack(
                    [_of(videos, name, "a feature in videos.npz") for _, name in pairs[split]]
                ),
            )
            for split in ("train", "val")
        )
        keys = (torch.from_numpy(content_keys(side)) for side in (first, second))
        training = PairedRows(torch.from_numpy(first), torch.from_numpy(second), *keys)
        tasks.append(Task(f"{setup}/{number}", training, *map(torch.from_numpy, tested)))
    return tasks


def _of(known: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in known:
        raise InvalidSource(f"ctvr: {name!r} of the splits has not {what}")
    return known[name]


def _splits(path: Path) -> Mapping[str, Mapping[int, Mapping[Any, Sequence[str]]]]:
    try:
        with path.open("rb") as file:
            found: Mapping[str, Mapping[int, Mapping[Any, Sequence[str]]]] = _Plain(file).load()
            return {split: found[split] for split in ("train", "val")}
    except FileNotFoundError as error:
        raise InvalidSource(
            f"ctvr: {path} is missing; it is in JasonCodeMaker/CTVR, data/"
        ) from error
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise InvalidSource(f"ctvr: {path} is no published split: {error}") from error


def _msrvtt(folder: Path) -> dict[str, dict[str, list[str]]]:
    """All captions of a video to train on, and its one sentence to test."""
    train = defaultdict[str, list[str]](list)
    path = folder / "MSRVTT_data.json"
    try:
        for each in _json(path)["sentences"]:
            train[each["video_id"]].append(each["caption"])
        path = folder / "MSRVTT_CL_validation.csv"
        with path.open(newline="", encoding="utf-8") as file:
            test = {row["video_id"]: [row["sentence"]] for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError) as error:
        raise InvalidSource(f"ctvr: {path} cannot be read: {error!r}") from error
    return {"train": train, "val": test}


def _actnet(folder: Path) -> dict[str, dict[str, list[str]]]:
    """The first sentence of each video."""
    return {
        split: {
            name: each["sentences"][:1]
            for name, each in _json(folder / f"{split}_queries.json").items()
        }
        for split in ("train", "val")
    }


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidSource(f"ctvr: {path} cannot be read: {error}") from error


def _features(folder: Path, kind: str) -> dict[str, np.ndarray]:
    """`videos.npz`, `texts.npz`: arrays `id` (ids of videos, or the texts themselves) and `features`."""
    path = folder / f"{kind}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            names, features_NF = stored["id"], stored["features"].astype(np.float32)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidSource(
            f"ctvr: {path} cannot be read: {error}; it has the arrays id and features"
        ) from error
    if len(names) != len(features_NF):
        raise InvalidSource(f"ctvr: {path} has {len(names)} ids and {len(features_NF)} features")
    return dict(zip(names.tolist(), features_NF, strict=True))


def run_method(tasks: Sequence[Task], name: str, model: Mapping[str, Any]) -> Outcome:
    """Learn all tasks with one method. `untrained`: none. `model`: fields of ModelSpec but the method."""
    width = tasks[0].training.first_NI.shape[1]
    widths = {"text": width, "video": tasks[0].training.second_NJ.shape[1]}
    fields = {"width": width, "modalities": widths, **model}
    if name == "untrained":
        heads = initial_state(spec_of("vanilla", fields)).heads
        return _outcome(tasks, [heads] * len(tasks), 0.0)
    spec = spec_of(name, fields)
    return _outcome(tasks, *_learned(tasks, spec, name))


def mean_figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Means over the seeds, as shares."""
    columns: dict[str, list[float]] = {
        "recall_at_1": [each.stored[0] for each in outcomes],
        "recall_at_5": [each.stored[1] for each in outcomes],
        "recall_at_10": [each.stored[2] for each in outcomes],
        "forgetting": [each.forgetting for each in outcomes],
        "recall_at_1_indexed_again": [each.again[0] for each in outcomes],
        "seconds": [each.seconds for each in outcomes],
    }
    return {name: fmean(values) for name, values in columns.items()}


def _learned(
    tasks: Sequence[Task], spec: ModelSpec, name: str
) -> tuple[list[ModalityHeads], float]:
    """The heads after each task, and the seconds of training."""
    place = place_of(name)
    method = method_for(spec) if place is None else method_class(place).from_spec(spec)
    state, past, heads = initial_state(spec), tuple[PastDataset, ...](), []
    began = time.perf_counter()
    for task in tasks:
        rows = task.training
        if len(rows) < spec.training.batch_size:
            raise InvalidSource(
                f"ctvr: {task.name} has {len(rows)} rows, and one batch takes "
                f"{spec.training.batch_size}: use a smaller --batch-size"
            )
        dataset = Dataset(task.name, _PAIR, rows, HeldOut(rows, None))
        learned = learn_one(spec, state, dataset, past, method)
        state, past = learned.model_state, (*past, remember(dataset, learned))
        heads.append(state.heads)
    return heads, time.perf_counter() - began


def _outcome(tasks: Sequence[Task], heads: Sequence[ModalityHeads], seconds: float) -> Outcome:
    # What is stored of each task when it is learned.
    kept = [each.embed("video", task.videos_QF) for task, each in zip(tasks, heads, strict=True)]
    last = len(tasks) - 1
    now = [hits(tasks, heads[last], kept, task) for task in range(len(tasks))]
    then = [hits(tasks, heads[task], kept[: task + 1], task) for task in range(last)]
    new = [heads[last].embed("video", task.videos_QF) for task in tasks]
    again = [hits(tasks, heads[last], new, task) for task in range(len(tasks))]
    forgotten = [
        _mean(before)[0] - _mean(after)[0] for before, after in zip(then, now, strict=False)
    ]
    return Outcome(
        _mean(torch.cat(now)), _mean(torch.cat(again)), fmean(forgotten or [0.0]), seconds
    )


def hits(
    tasks: Sequence[Task], heads: ModalityHeads, gallery: Sequence[Tensor], task: int
) -> Tensor:
    """Whether each query of a task finds its own video among the best 1, 5 and 10 of the gallery (Q × 3)."""
    queries_QE = heads.embed("text", tasks[task].queries_QF)
    before = sum(len(each) for each in gallery[:task])
    best_QK = (
        (queries_QE @ torch.cat(list(gallery)).mT)
        .topk(min(max(_BEST), sum(map(len, gallery))), dim=1)
        .indices
    )
    own_Q1 = before + torch.arange(len(queries_QE))[:, None]
    return torch.stack([(best_QK[:, :count] == own_Q1).any(dim=1) for count in _BEST], dim=1)


def _mean(hits_Q3: Tensor) -> tuple[float, float, float]:
    at_1, at_5, at_10 = hits_Q3.double().mean(dim=0).tolist()
    return at_1, at_5, at_10
