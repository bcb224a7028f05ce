"""Exports of versions on this machine: unpacked safely, and put behind their encoders."""

import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from cmcl.client.errors import CmclError, InvalidArgument
from cmcl.contract.encoder import OTHER_FOLDERS, EncoderIdentity, ModelFiles

_MODULES = "modules.json"
_SENTENCE_TRANSFORMERS = "sentence-transformers"


def check_new_folder(folder: Path) -> None:
    """Raises InvalidArgument if there is something at this path already."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise InvalidArgument(f"{folder} exists already; name a new folder for the export")


def unpack(archive: bytes, folder: Path, encoders: Mapping[str, Path]) -> None:
    """Unpack an export into a new folder, which appears when it is complete.

    `encoders`: by modality the folder of the encoder to put in front. Raises InvalidArgument, CmclError, OSError.
    """
    parent = folder.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".export-") as temporary:
        whole = Path(temporary, "export")
        whole.mkdir()
        _extract(archive, whole)
        for modality, encoder in encoders.items():
            put_encoder_in_front(whole, modality, encoder)
        check_new_folder(folder)
        whole.replace(folder)


def _extract(archive: bytes, folder: Path) -> None:
    """Extract regular files, and only inside of the folder; other members of the archive are refused. Raises CmclError."""
    # tarfile takes an archive that was cut off between two files as a whole one.
    if not archive.endswith(bytes(2 * tarfile.BLOCKSIZE)):
        raise CmclError("the export is incomplete or no tar archive: it has no end")
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                content = tar.extractfile(member) if member.isreg() else None
                if content is None or path.is_absolute() or ".." in path.parts:
                    raise CmclError(
                        f"the export has an entry {member.name!r} that is no file inside of it; nothing was "
                        "written. Check that the address is that of a cmcl endpoint"
                    )
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with content, target.open("xb") as file:
                    shutil.copyfileobj(content, file)
    except tarfile.TarError as error:
        raise CmclError(f"the export is incomplete or no tar archive: {error}") from error


def put_encoder_in_front(export: Path, modality: str, encoder: Path) -> None:
    """Make the folder of a modality a model of raw items: the encoder's modules, then those of the head.

    The encoder's files must be those whose features the version has learned. Raises InvalidArgument, OSError.
    """
    head = export / modality
    if not (head / _MODULES).is_file():
        raise InvalidArgument(
            f"an encoder is given for {modality!r}; the export has no folder of modules for it: it is not "
            f"in the format {_SENTENCE_TRANSFORMERS}, or the model has no such modality"
        )
    _check_encoder(export, modality, encoder)
    first = json.loads((encoder / _MODULES).read_text())
    second = json.loads((head / _MODULES).read_text())
    hidden = shutil.ignore_patterns(".*", *OTHER_FOLDERS)
    # The encoder's prompts are kept, and so is what is said about them.
    shutil.copytree(encoder, head, dirs_exist_ok=True, ignore=hidden)
    modules = [
        {**module, "idx": number, "name": str(number)}
        for number, module in enumerate([*first, *second])
    ]
    (head / _MODULES).write_text(json.dumps(modules, indent=2) + "\n")


def _check_encoder(export: Path, modality: str, encoder: Path) -> None:
    manifest: dict[str, Any] = json.loads((export / "manifest.json").read_text())
    label = f"{manifest['model']}@{manifest['version']}"
    learned = manifest["encoders"].get(modality)
    if learned is None:
        raise InvalidArgument(
            f"{label} has learned features of {modality!r} whose encoder is not declared, so that no encoder can be "
            "compared with it; export without one, and see README.md there"
        )
    identity = EncoderIdentity.model_validate(learned)
    if identity.kind != _SENTENCE_TRANSFORMERS:
        raise InvalidArgument(
            f"the features of {modality!r} in {label} are of {identity.kind} {identity.model or ''}; only encoders of "
            f"{_SENTENCE_TRANSFORMERS} can be put in front"
        )
    if not (encoder / _MODULES).is_file():
        raise InvalidArgument(
            f"{encoder} has no {_MODULES}; permitted is the folder of a model of {_SENTENCE_TRANSFORMERS}"
        )
    found = ModelFiles.in_folder(encoder).digest
    if found != identity.files:
        raise InvalidArgument(
            f"{encoder} is not the encoder whose features {label} has learned for {modality!r}: its files have the "
            f"digest {found[:16]}, expected {(identity.files or 'none')[:16]} ({identity.model}, commit "
            f"{identity.revision})"
        )
