"""A sentence-transformers model on disk: a folder of plain files, and its digest."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from features.encoders.policy import Origin, RemotePolicy
from features.errors import DataError, needing
from features.files import sha256

PARTS = (".json", ".txt", ".safetensors", ".model")
"""Files that a model is made of; others (a card, other formats, programs) are left where they are."""


MODULES = {"Transformer", "Pooling", "Normalize", "Dense", "LayerNorm", "Dropout", "WeightedLayerPooling", "LogitScore"}
"""Parts of sentence-transformers that a model may be made of: none of them loads a class that the model names."""
ACTIVATION = re.compile(r"torch\.nn\.modules\.(activation|linear)\.\w+")


def find_model(name: str, revision: str | None = None, policy: RemotePolicy | None = None) -> Path:
    """Return the folder of a model: one on this machine, or one of the Hugging Face hub, fetched where need be.

    Args:
        name: A folder, or a name; without a slash it is one of `sentence-transformers/`.
        revision: Of a name: the commit, tag or branch. None: the newest.
        policy: Whether the hub may be asked, where a bundle names the model. None: the name is the operator's own.

    Raises:
        DataError: There is no such model, or none in plain files, or it would have to be fetched and may not be.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith("."):
            raise DataError(f"{name}: no such folder; name the folder of a sentence-transformers model")
        folder = _fetch(name if "/" in name else f"sentence-transformers/{name}", revision, policy)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise DataError(
            f"{folder}: expected a model in plain files, config.json and *.safetensors, found "
            f"{', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'nothing'}; save it again with "
            "SentenceTransformer.save_pretrained"
        )
    return folder


def model_digest(folder: Path) -> str:
    """Return the SHA-256 of a model: of the names and contents of its files."""
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


def check_model(folder: Path) -> None:
    """Refuse a model whose files name code that would run while it is loaded.

    sentence-transformers imports the classes and functions that a model names: in a bundle, what its maker chose.

    Raises:
        DataError: A part is not one of `MODULES`, or an activation is not one of torch's.
    """
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).as_posix()
        if path.name not in ("modules.json", "config.json"):
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not JSON ({error}); save the model again") from None
        for what in [*_classes(content)] if path.name == "modules.json" else [*_activations(content)]:
            raise DataError(
                f"{folder}: {name} names {what!r}, which is none of the parts that are loaded from a bundle "
                f"({', '.join(sorted(MODULES))}; activations of torch.nn); use another model"
            )


def _classes(content: Any) -> Iterator[str]:
    """Yield the classes of a modules.json that are not to be imported."""
    for module in content if isinstance(content, list) else [content]:
        named = str(module.get("type")) if isinstance(module, dict) else str(module)
        room, _, name = named.rpartition(".")
        if name not in MODULES or room.partition(".")[0] != "sentence_transformers":
            yield named


def _activations(content: Any) -> Iterator[str]:
    """Yield what a config.json would have called as an activation and must not."""
    own = content.get("sentence_transformers") if isinstance(content, dict) else None
    for table, key in (
        (content, "sbert_ce_default_activation_function"),
        (own, "activation_fn"),
        (content, "activation_function"),
    ):
        named = table.get(key) if isinstance(table, dict) else None
        if isinstance(named, str) and "." in named and not ACTIVATION.fullmatch(named):
            yield named


def _fetch(name: str, revision: str | None, policy: RemotePolicy | None) -> Path:
    with needing("models of the Hugging Face hub"):
        from huggingface_hub import constants, snapshot_download

    patterns = [f"*{suffix}" for suffix in PARTS]
    hub = Origin.of(constants.ENDPOINT)
    is_here_only = policy is not None and not policy.allows(hub)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=is_here_only))
    except (OSError, ValueError) as error:
        if is_here_only:
            raise DataError(
                f"model {name!r}: not on this machine, and the operator has not allowed to fetch what a bundle names; "
                f'if you trust it, put "{hub}" into encoder_hosts in serving.toml, or into TOWERS_ENCODER_HOSTS'
            ) from None
        said = " ".join(str(error).split())[:160]
        raise DataError(
            f"model {name!r}: neither a local folder nor available from the hub ({said}); correct the name, or give "
            "the folder of a sentence-transformers model"
        ) from None
