"""Kinds are found by name, by entry point or by class; an encoder that cannot start has a reason."""

import subprocess
import sys
from pathlib import Path

import pytest

from cmcl.contract.encoder import EncoderSpec
from tests.fakes.encoder_cases import features
from workers.encoders.port import EncoderUnusable, environment, load_encoder

PLUG_IN = '''
from workers.encoders.synthetic import SyntheticEncoder

class Plugged(SyntheticEncoder):
    """Reads options."""

    uses = frozenset({"options"})

class Narrow(SyntheticEncoder):
    def features(self, items):
        return super().features(items)[:, 1:]

class Infinite(SyntheticEncoder):
    def features(self, items):
        return super().features(items) / 0

not_a_class = 1
'''


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with encoders, and an installed package that names one of them."""
    (tmp_path / "plug_in_of_a_test.py").write_text(PLUG_IN)
    metadata = tmp_path / "plug_in_of_a_test-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plug-in\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "[cmcl.encoders]\nplugged = plug_in_of_a_test:Plugged\nbroken = plug_in_of_a_test:Absent\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plug_in_of_a_test", raising=False)
    return "plug_in_of_a_test"


def spec(kind: str, **fields: object) -> EncoderSpec:
    return EncoderSpec.model_validate(
        {"name": "x", "kind": kind, "takes": "text", "width": 8, **fields}
    )


@pytest.mark.parametrize("kind", ["plugged", "plug_in_of_a_test:Plugged"])
def test_a_plug_in_is_loaded_by_its_entry_point_or_its_class(plug_in: str, kind: str) -> None:
    encoder = load_encoder(spec(kind, options={"depth": 3}))
    assert type(encoder).__name__ == "Plugged"
    assert encoder.identity().kind == kind
    assert features(encoder, "a red chair").shape == (1, 8)


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        (
            "nothing",
            {},
            "kind 'nothing', which this node does not have; it has synthetic, .*plugged",
        ),
        ("broken", {}, "cannot be imported from plug_in_of_a_test:Absent: .*no attribute 'Absent'"),
        ("no_such_module:A", {}, "cannot be imported from no_such_module:A: No module named"),
        ("plug_in_of_a_test:not_a_class", {}, "is no subclass of workers.encoders.port.Frozen"),
        ("subprocess:Popen", {}, "is no subclass of workers.encoders.port.FrozenEncoder"),
        ("plug_in_of_a_test:Narrow", {}, "has width 8, but the features of kind .* have 7"),
        ("plug_in_of_a_test:Infinite", {}, "features that are not finite"),
        ("synthetic", {"options": {"a": 1}}, "sets options, which kind 'synthetic' does not"),
        ("synthetic", {"pooling": "mean"}, "sets pooling, which kind 'synthetic' does not"),
        ("synthetic", {"max_tokens": 3}, "sets max_tokens, which kind 'synthetic' does not"),
        ("synthetic", {"takes": "audio", "windows": 3}, "has 3 windows: set window_seconds"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_an_encoder_that_cannot_do_its_work_says_why(
    plug_in: str, kind: str, fields: dict[str, object], reason: str
) -> None:
    with pytest.raises(EncoderUnusable, match=reason):
        load_encoder(spec(kind, **fields))


@pytest.mark.parametrize(
    ("kind", "takes", "module", "package"),
    [
        ("sentence-transformers", "text", "sentence_transformers", "sentence-transformers"),
        ("open-clip", "text", "open_clip", "open_clip_torch"),
        ("synthetic", "video", "av", "av"),
        ("synthetic", "audio", "soundfile", "soundfile"),
    ],
)
def test_a_missing_package_is_named_with_what_to_install(
    kind: str, takes: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What `find_spec` looks up first: this is a node without the package.
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, module, raising=False)
    model = None if kind == "synthetic" else "m"
    with pytest.raises(EncoderUnusable, match=f"pip install {package}$"):
        load_encoder(spec(kind, takes=takes, model=model))


def test_decoding_imports_neither_torch_nor_ray() -> None:
    """Preparation decodes in small processes, which must start quickly."""
    code = (
        "import sys, workers.encoders.port, "
        "workers.encoders.decoding; print({'torch', 'ray', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_only_a_download_reaches_the_hub() -> None:
    assert environment(spec("synthetic"))["HF_HUB_OFFLINE"] == "1"
    fetched = spec("transformers", model="m", download=True, revision="c")
    assert "HF_HUB_OFFLINE" not in environment(fetched)
