"""The model card of an export: what the version learned, how good it is, and how it is used."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from cmcl.contract.api.versions import EvaluationRow
from cmcl.contract.version import Recall, VersionManifest, VersionReport
from cmcl.pictures import Picture, VersionPictures, manifest_pictures

_USE: Mapping[str, str] = MappingProxyType(
    {
        "sentence-transformers": """Each folder is a model of sentence-transformers whose input is a feature. In this folder:

```python
import torch
from sentence_transformers import SentenceTransformer

head = SentenceTransformer("./{modality}")
with torch.inference_mode():  # features: rows x {width}, float32
    embeddings = head({{"sentence_embedding": features}})["sentence_embedding"]
```

Behind the encoder of the features it is a model of raw items:

```python
model = SentenceTransformer(modules=[*SentenceTransformer("ENCODER"), *SentenceTransformer("./{modality}")])
```

A feature that lies on the mean of its modality, to a millionth, has no direction: the endpoint returns the embedding \
of the bias for it, and these modules that of rounding.
""",
        "onnx": """Each modality is a file: `features` in, `embeddings` out, rows of float32. In this folder:

```python
import onnxruntime

head = onnxruntime.InferenceSession("{modality}.onnx")
(embeddings,) = head.run(None, {{"features": features}})  # features: rows x {width}, float32
```
""",
        "safetensors": """`embed.py` needs numpy and safetensors; `python embed.py` checks itself against \
`selftest.safetensors`. In this folder:

```python
from embed import embed, load_file

embeddings = embed(load_file("heads.safetensors"), "{modality}", features)  # features: rows x {width}
```
""",
        "mlflow": """Each folder is a model of MLflow with the flavours onnx and python_function. In this folder:

```python
import mlflow.pyfunc

head = mlflow.pyfunc.load_model("./{modality}")
embeddings = head.predict(features)["embeddings"]  # features: rows x {width}, float32
```
""",
    }
)
_ABOUT = """Heads that map features of {names} into one space of {width} dimensions. An embedding has unit length; the score of \
two items of any modality is the dot product of their embeddings. Compare embeddings of one version with each other: \
another version of {model} may have moved them.

Published {day}; {learning}. `manifest.json` is the whole record. `selftest.safetensors` has \
random features of each modality and the embeddings that they must give. No rows of a dataset are in this folder."""
_WITHOUT_MOMENTS = "Nor are moments of a dataset."
_WITH_MOMENTS = """**`moments/` has the means and second moments of every dataset**, so that another site can merge \
them. They reveal more than heads do: the mean feature, in which directions features vary, and of a dataset with fewer \
rows than its features have numbers (those of the lift included), whether a given row is one of it. Share this folder only with people \
who may have this information."""
_LICENCE = """Not stated: to publish this folder, state one in the fields `license` and `license_name` above. These heads are \
computed from the features of the datasets and encoders listed here, whose licences may say what is permitted."""
_RECALL = (
    "Recall at 1 in %, both directions averaged. A hit is the query's own row; a row with an equal item, where items "
    "repeat; or one with the same label, where rows have labels. `manifest.json` has recall by own row for each dataset."
)
_CERTIFICATE = (
    "Drift: root mean square change of the dataset's scores over all combinations of its rows, relative to their "
    "size; since it was learned, and by this version alone. Loss: spectral contrastive loss of the whole dataset; "
    "−1 as when it was learned, lower is better. Both are computed from moments, without its rows."
)


def card_files(
    manifest: VersionManifest,
    matrix: Sequence[EvaluationRow],
    format_: str,
    *,
    with_moments: bool = False,
) -> Iterator[tuple[str, str]]:
    """Yield name and text of the card, README.md, which says whether moments are exported, too; and of its pictures.

    `matrix`: recall of the versions up to this one, whose row is the last.
    """
    drawn = manifest_pictures(manifest, matrix, manifest.report.evaluation_only)
    moments = _WITH_MOMENTS if with_moments else _WITHOUT_MOMENTS
    yield "README.md", _card(manifest, matrix, format_, drawn, moments)
    for name, picture in drawn._asdict().items():
        if picture is not None:
            yield f"pictures/{name}.svg", picture.svg(standalone=True) + "\n"


def _card(
    manifest: VersionManifest,
    matrix: Sequence[EvaluationRow],
    format_: str,
    drawn: VersionPictures,
    moments: str,
) -> str:
    spec, label = manifest.spec, f"{manifest.model}@{manifest.version}"
    learned = {name for line in manifest.learned for name in line.pair.modalities}
    first = min(learned)
    parts = [
        _front_matter(format_),
        f"# {label}",
        _ABOUT.format(
            names=", ".join(sorted(learned)),
            width=spec.width,
            model=manifest.model,
            day=f"{manifest.created_at:%Y-%m-%d}",
            learning=f"policy {spec.policy}" if spec.policy else f"method {spec.method}",
        ),
        _not_learned(label, sorted(spec.modalities.keys() - learned)),
        moments,
        "## Use",
        _USE[format_].format(modality=first, width=spec.widths[first]).rstrip(),
        "## Modalities",
        _modalities(manifest),
        "## What it learned",
        _learned(manifest),
        _unconnected(manifest.report),
        _shown(graph=drawn.graph),
        "## Recall",
        _recall(manifest, matrix),
        _shown(forgetting=drawn.forgetting, retention=drawn.retention),
        "## Certificates",
        _certificates(manifest),
        _shown(drift=drawn.drift),
        "## Licence",
        _LICENCE,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(format_: str) -> str:
    library = format_ if format_ != "safetensors" else "numpy"
    return (
        "---\nlicense: other\nlicense_name: not-stated\n"
        f"library_name: {library}\npipeline_tag: feature-extraction\n"
        "tags:\n- cmcl\n- embeddings\n- multimodal\n---"
    )


def _not_learned(label: str, modalities: Sequence[str]) -> str:
    """Which heads to leave alone; empty where all were learned."""
    if not modalities:
        return ""
    return (
        f"**{label} has not learned {', '.join(modalities)}.** These heads are here as they were initialized: what they "
        "return is noise."
    )


def _modalities(manifest: VersionManifest) -> str:
    learned = {name for line in manifest.learned for name in line.pair.modalities}
    rows = []
    for name, modality in sorted(manifest.spec.modalities.items()):
        identity = manifest.encoders.get(name)
        encoder = (
            "not declared: features of any origin"
            if identity is None
            else (
                f"{identity.kind} {identity.model or ''}".strip()
                + (f", commit {identity.revision}" if identity.revision else "")
                + (f", files {identity.files[:16]}" if identity.files else "")
                + f", takes {identity.takes}"
            )
        )
        state = "yes" if name in learned else "no: its head is the initial one"
        rows.append((name, str(modality.width), encoder, state))
    return _table(("modality", "width of its features", "encoder", "learned"), rows)


def _learned(manifest: VersionManifest) -> str:
    rows = [
        (line.name, line.pair.key, f"{line.rows:,}", str(line.version), _percent(line.recall))
        for line in manifest.learned
    ]
    heading = ("dataset", "pair", "rows", "version that learned it", "recall at 1 then")
    return _table(heading, rows)


def _recall(manifest: VersionManifest, matrix: Sequence[EvaluationRow]) -> str:
    names = {line.dataset: line.name for line in manifest.learned}
    datasets = [each for each in names if any(each in row.recall for row in matrix)]
    if not datasets:
        return "Not measured: its datasets have no held-out rows."
    rows = [
        (str(row.version), *(_percent(row.recall.get(each)) for each in datasets)) for row in matrix
    ]
    newest = {dataset: recall for row in matrix for dataset, recall in row.recall.items()}
    heading = ("version", *(f"{names[each]} ({newest[each].counts})" for each in datasets))
    return f"{_RECALL}\n\n{_table(heading, rows)}"


def _certificates(manifest: VersionManifest) -> str:
    names = {line.dataset: line.name for line in manifest.learned}
    report = manifest.report
    rows = []
    for dataset, name in names.items():
        drift, quality = report.drift.get(dataset), report.quality.get(dataset)
        if drift or quality:
            found = (
                drift and drift.since_learned,
                drift and drift.against_parent,
                quality and quality.now,
                quality and quality.best,
            )
            rows.append((name, *("" if each is None else f"{each:.4g}" for each in found)))
    if not rows:
        return "None: it learned its first dataset."
    heading = (
        "earlier dataset",
        "drift since learned",
        "drift by this version",
        "loss",
        "best loss",
    )
    return f"{_CERTIFICATE}\n\n{_table(heading, rows)}"


def _unconnected(report: VersionReport) -> str:
    """Between which modalities scores mean nothing; empty where all are connected."""
    groups = report.solution.groups if report.solution else ()
    if len(groups) < 2:
        return ""
    named = "; ".join(", ".join(group) for group in groups)
    return f"No dataset connects these groups, so scores between them mean nothing: {named}."


def _shown(**drawn: Picture | None) -> str:
    """Pictures by the names of their files; those of None are left out."""
    return "\n\n".join(
        f"![{picture.title}](pictures/{name}.svg)" for name, picture in drawn.items() if picture
    )


def _percent(recall: Recall | None) -> str:
    return "" if recall is None else f"{100 * recall.at_1:.1f}"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
