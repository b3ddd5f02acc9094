"""The folder of a bundle's re-ranker, of any kind, and its manifest.

It lies in the folder `ranker/` of the bundle whose retrieval it was judged on, with a seal of its own, as the index
does: other weights find other candidates with other scores, and it would put those into a plausible, wrong order.

```
ranker/
  manifest.json         the seal: kind, digest of the weights, what it gained and cost, each file's digest
  ranker.safetensors    of the learned one: the network
  model/                of those that read texts: the model of sentence-transformers
```
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ValidationError

from features.files import atomic_folder
from features.messages import shown
from features.settings import StrictTable
from towers.bundle.bundle import ModelBundle
from towers.bundle.sealed_file import BundleError
from towers.bundle.sealed_folder import SealedFolder, read_manifest, said_of, seal
from towers.bundle.signature import sign, signing_key
from towers.rerankers.kinds import RERANKER_KINDS

FOLDER = "ranker"
"""Folder in a bundle."""
NAME = "manifest.json"
MODEL = "model"
"""Sub-folder of the sentence-transformers model."""
FORMAT_VERSION = 2


def _known_kind(name: str) -> str:
    if name not in RERANKER_KINDS:
        raise ValueError(f"expected one of {', '.join(RERANKER_KINDS)}; found {shown(name)}")
    return name


RerankerKindName = Annotated[str, AfterValidator(_known_kind)]
"""A name in `RERANKER_KINDS`."""


class Judgement(StrictTable):
    """Result of a re-ranker on queries that it was neither trained on nor selected by."""

    num_questions: int
    """Number of held-out queries."""
    ndcg_before: float
    """N@10 of the retriever's order."""
    ndcg_after: float
    """N@10 of the re-ranked order."""
    gain_low: float
    """Lower bound of the 95 % interval of the gain in N@10, paired, over queries and trainings."""
    gain_high: float
    """Upper bound of the 95 % interval of the gain."""
    milliseconds: float
    """p50 latency of a request, in one thread of the machine of the evaluation."""
    milliseconds_p99: float
    """p99 latency of a request."""


class TextSettings(StrictTable):
    """Text settings of a re-ranker."""

    weight: float
    """Weight of its score against the retriever's, 0 to 1."""
    history_items: int
    """Number of the newest history items whose texts are read."""
    max_tokens: int
    """Maximum tokens of a text, or of a pair of texts."""


class RankerManifest(StrictTable):
    """The manifest of a re-ranker."""

    format_version: int
    """Format of the folder; this version reads 2."""
    kind: RerankerKindName
    """Kind of the re-ranker, a name in `RERANKER_KINDS`."""
    weights_digest: str
    """SHA-256 of the weights of the two towers whose candidates it re-ranks."""
    num_candidates: int
    """Default number of candidates."""
    features: list[str]
    """Names of the candidate features, for kinds that read features."""
    text: TextSettings | None
    """Text settings, for kinds that read texts."""
    judgement: Judgement | None
    """Gain and latency on held-out queries; None without such queries."""
    created: str
    """Time of creation, ISO 8601 in UTC."""
    files: dict[str, dict[str, int | str]]
    """Bytes and SHA-256 of every other file of the folder, by name."""

    @property
    def digest(self) -> str:
        """Digest of everything that decides how a text is encoded."""
        max_tokens = None if self.text is None else self.text.max_tokens
        return hashlib.sha256(json.dumps([max_tokens, self.files], sort_keys=True).encode()).hexdigest()


def has_ranker(bundle_path: Path) -> bool:
    """Return whether a bundle has a re-ranker, intact or not."""
    return os.path.lexists(bundle_path / FOLDER)


def write_ranker(
    bundle: ModelBundle,
    kind: str,
    save: Callable[[Path], None],
    *,
    num_candidates: int,
    features: Sequence[str] = (),
    text: TextSettings | None = None,
    judgement: Judgement | None = None,
) -> Path:
    """Write a ranker into its bundle, in the place of one that is there, and return its folder.

    Args:
        bundle: Whose candidates it puts into order.
        kind: A name in `RERANKER_KINDS`.
        save: Writes its files into a folder.
        num_candidates: How many candidates it is made for.
        features: What a learned one reads of each candidate.
        text: Text settings, for kinds that read texts.
        judgement: What it was found to gain and to cost.
    """
    with atomic_folder(bundle.path / FOLDER) as folder:
        save(folder)
        sealed = RankerManifest(
            format_version=FORMAT_VERSION,
            kind=kind,
            weights_digest=bundle.weights_digest,
            num_candidates=num_candidates,
            features=list(features),
            text=text,
            judgement=judgement,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            files=seal(folder),
        )
        (folder / NAME).write_text(sealed.model_dump_json(indent=1) + "\n", encoding="utf-8")
        sign(folder / NAME, signing_key())
    return bundle.path / FOLDER


def read_ranker_manifest(bundle: ModelBundle) -> RankerManifest:
    """Return the seal of a bundle's ranker, after proving that it belongs there and is intact.

    If the bundle must be signed, the re-ranker must be as well.

    Raises:
        BundleError: Says what is wrong and how to train it again.
    """
    return open_ranker(bundle)[0]


def open_ranker(bundle: ModelBundle) -> tuple[RankerManifest, SealedFolder]:
    """Return the seal of a bundle's ranker and its folder, after proving that it belongs there and is intact.

    Raises:
        BundleError: Says what is wrong and how to train it again.
    """
    path, remedy = bundle.path / FOLDER, remedy_of(bundle.path)
    try:
        content = read_manifest(path, bundle.trust.keys)
        found = content.get("format_version")
        if found != FORMAT_VERSION:
            raise BundleError(f"{path}: expected ranker format {FORMAT_VERSION}, found {str(found)[:40]}; {remedy}")
        sealed = RankerManifest.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"{path}: {NAME} is damaged ({error.errors()[0]['msg'].lower()}); {remedy}") from None
    except BundleError:
        raise
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: {NAME} cannot be read ({said_of(error)}); {remedy}") from None
    if sealed.weights_digest != bundle.weights_digest:
        raise BundleError(
            f"{path}: trained with other weights (digest {sealed.weights_digest[:12]}) than the model in "
            f"{bundle.path} (digest {bundle.weights_digest[:12]}); {remedy}"
        )
    try:
        return sealed, SealedFolder.open(path, sealed.files, bundle.copies)
    except ValueError as error:
        raise BundleError(f"{path}: {error}; {remedy}") from None


def remedy_of(bundle_path: Path) -> str:
    """Return what to do about a ranker that cannot be used."""
    return f"train it again with `towers train-ranker {bundle_path}`, or remove the folder"
