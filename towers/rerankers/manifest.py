"""The ranker of a bundle as it is on disk: what puts its candidates into a better order, of whatever kind.

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

from features.config import StrictTable
from features.files import atomic_folder
from features.messages import shown
from towers.bundle.bundle import ModelBundle
from towers.bundle.sealed_file import BundleError
from towers.bundle.sealed_folder import SealedFolder, read_manifest, said_of, seal
from towers.bundle.signature import sign, signing_key
from towers.rerankers.kinds import RERANKER_KINDS

FOLDER = "ranker"
"""Where it is in a bundle."""
NAME = "manifest.json"
MODEL = "model"
"""Where in the folder the model of sentence-transformers is."""
FORMAT_VERSION = 2


def _known_kind(name: str) -> str:
    if name not in RERANKER_KINDS:
        raise ValueError(f"expected one of {', '.join(RERANKER_KINDS)}; found {shown(name)}")
    return name


RerankerKindName = Annotated[str, AfterValidator(_known_kind)]
"""A name in `RERANKER_KINDS`."""


class Judgement(StrictTable):
    """Result of a re-ranker on queries that it was not trained on."""

    num_questions: int
    """How many they were."""
    ndcg_before: float
    """N@10 of the retriever's order."""
    ndcg_after: float
    """N@10 of its own."""
    gain_low: float
    """Where the 95 % interval of the difference begins; paired, bootstrap."""
    gain_high: float
    """Where it ends."""
    milliseconds: float
    """What one request took, the median, in one thread of the machine that judged it."""
    milliseconds_p99: float
    """What 99 of 100 requests took at most."""


class Reading(StrictTable):
    """How a ranker reads texts."""

    share: float
    """Weight of its score against the retriever's, 0 to 1."""
    num_read: int
    """How many of the newest items of a history it reads."""
    max_tokens: int
    """How many tokens of a text, or of a pair of texts, it reads at most."""


class RankerManifest(StrictTable):
    """What is said of a ranker on disk."""

    format_version: int
    """Of the folder; this version reads 2."""
    kind: RerankerKindName
    """Kind of the re-ranker, a name in `RERANKER_KINDS`."""
    weights_digest: str
    """SHA-256 of the weights of the model whose candidates it puts into order."""
    num_candidates: int
    """How many candidates it is made for."""
    features: list[str]
    """What a learned one reads of each candidate."""
    reading: Reading | None
    """How one that reads texts does so."""
    judgement: Judgement | None
    """What it was found to gain and to cost; None where there were no questions."""
    created: str
    """When, ISO 8601 in UTC."""
    files: dict[str, dict[str, int | str]]
    """Bytes and SHA-256 of every other file of the folder, by name."""

    @property
    def digest(self) -> str:
        """Of everything that decides how it reads a text."""
        reading = None if self.reading is None else self.reading.max_tokens
        return hashlib.sha256(json.dumps([reading, self.files], sort_keys=True).encode()).hexdigest()


def has_ranker(bundle_path: Path) -> bool:
    """Return whether there is a ranker in a bundle, whatever state it is in."""
    return os.path.lexists(bundle_path / FOLDER)


def write_ranker(
    bundle: ModelBundle,
    kind: str,
    save: Callable[[Path], None],
    *,
    num_candidates: int,
    features: Sequence[str] = (),
    reading: Reading | None = None,
    judgement: Judgement | None = None,
) -> Path:
    """Write a ranker into its bundle, in the place of one that is there, and return its folder.

    Args:
        bundle: Whose candidates it puts into order.
        kind: A name in `RERANKER_KINDS`.
        save: Writes its files into a folder.
        num_candidates: How many candidates it is made for.
        features: What a learned one reads of each candidate.
        reading: How one that reads texts does so.
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
            reading=reading,
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
