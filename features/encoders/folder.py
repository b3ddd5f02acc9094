"""A sentence-transformers model as what it is on disk: a folder of plain files, and the digest of what is in it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from features.errors import DataError, needing
from features.files import sha256

PARTS = (".json", ".txt", ".safetensors", ".model")
"""Files that a model is made of; others (a card, other formats, programs) are left where they are."""


def find_model(name: str, revision: str | None = None) -> Path:
    """Return the folder of a model: one on this machine, or one of the Hugging Face hub, fetched where need be.

    Args:
        name: A folder, or a name; without a slash it is one of `sentence-transformers/`.
        revision: Of a name: the commit, tag or branch. None: the newest.

    Raises:
        DataError: There is no such model, or none in plain files.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith("."):
            raise DataError(f"{name}: no such folder; name the folder of a sentence-transformers model")
        folder = _fetch(name if "/" in name else f"sentence-transformers/{name}", revision)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise DataError(
            f"{folder}: expected a model in plain files, config.json and *.safetensors, found "
            f"{', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'nothing'}; save it anew with "
            "SentenceTransformer.save_pretrained"
        )
    return folder


def model_digest(folder: Path) -> str:
    """Return the SHA-256 of a model: of the names of its files and what is in each."""
    listed = json.dumps([[path.relative_to(folder).as_posix(), sha256(path)] for path in _parts(folder)])
    return hashlib.sha256(listed.encode()).hexdigest()


def copy_model(source: Path, target: Path) -> None:
    """Copy what a model is made of."""
    for path in _parts(source):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def _parts(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix in PARTS)
    return sorted(path for path in files if not path.relative_to(folder).parts[0].startswith((".", "onnx", "openvino")))


def _fetch(name: str, revision: str | None) -> Path:
    with needing("models of the Hugging Face hub"):
        from huggingface_hub import snapshot_download

    patterns = [f"*{suffix}" for suffix in PARTS]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:160]
        raise DataError(
            f"model {name!r}: neither a folder here nor to be had from the hub ({said}); correct the name, or give the "
            "folder of a sentence-transformers model"
        ) from None
