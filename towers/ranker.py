"""The learned ranker: a small network over the features of a shortlist, and what it is on disk.

It lies in the folder `ranker/` of the bundle whose retrieval it was trained on, with a seal of its own, as the index
does: other weights find other candidates with other scores, and it would put those into a plausible, wrong order.

```
ranker/
  manifest.json         the seal: digest of the weights, what it reads, what it was found to gain, each file's digest
  ranker.safetensors    the network
```
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from features.config import StrictTable
from features.files import atomic_folder
from towers.bundle import ModelBundle
from towers.item_facts import ItemFacts
from towers.manifest import BundleError, broken_seal, seal
from towers.rank_features import RankFeatures
from towers.reranking import Deadline, Shortlist

FOLDER = "ranker"
"""Where it is in a bundle."""
NAME = "manifest.json"
FORMAT_VERSION = 1
HIDDEN = 64
DROPOUT = 0.1

_WEIGHTS = "ranker.safetensors"
_FAR = 5.0


class RankerSeal(StrictTable):
    """What is said of a ranker on disk."""

    format_version: int
    """Of the folder; this version reads 1."""
    kind: Literal["learned"]
    """What it is."""
    weights_digest: str
    """SHA-256 of the weights of the model that it was trained with."""
    features: list[str]
    """What it reads of each candidate."""
    num_candidates: int
    """How long the shortlists were that it was trained on."""
    num_questions: int
    """How many of them there were."""
    ndcg_before: float
    """N@10 of the retriever's order on questions that were held out from it."""
    ndcg_after: float
    """N@10 of its own on the same; each was answered by members that had not learned from it."""
    created: str
    """When, ISO 8601 in UTC."""
    files: dict[str, dict[str, int | str]]
    """Bytes and SHA-256 of every other file of the folder, by name."""


class RankNetwork(nn.Module):
    """Several small networks of the same shape; the score is the mean of theirs.

    Args:
        num_features: How many numbers there are of a candidate.
        num_members: How many networks.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, num_features: int, num_members: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("spread", torch.ones(num_features))
        self.members = nn.ModuleList(_member(2 * num_features) for _ in range(num_members))

    def prepared(self, features: Float[Tensor, "*lists candidates features"]) -> Float[Tensor, "*lists candidates two"]:
        """Return features as the members read them: beside all candidates there are, and beside those of the list.

        What nobody knows is as usual as can be.
        """
        among_all = ((features - self.mean) / self.spread).nan_to_num(0.0).clamp(-_FAR, _FAR)
        centre = among_all.mean(dim=-2, keepdim=True)
        spread = among_all.std(dim=-2, keepdim=True, correction=0) + 1e-6
        return torch.cat([among_all, ((among_all - centre) / spread).clamp(-_FAR, _FAR)], dim=-1)

    def forward(self, features: Float[Tensor, "candidates features"]) -> Float[Tensor, " candidates"]:
        """Return a score for each candidate of a list."""
        prepared = self.prepared(features)
        return torch.stack([member(prepared).squeeze(-1) for member in self.members]).mean(dim=0)


class LearnedRanker:
    """Puts a shortlist into the order that a network learned from held-out answers; a `Reranker`.

    Args:
        network: In evaluation mode.
        facts: What is known of the items today.
    """

    def __init__(self, network: RankNetwork, facts: ItemFacts) -> None:
        self._network = network
        self._features = RankFeatures(facts)

    def scores(self, shortlist: Shortlist, deadline: Deadline) -> Float32[np.ndarray, " candidates"]:
        """Return a score for each candidate; see `Reranker.scores`."""
        features = self._features.of(shortlist)
        deadline.check()
        with torch.inference_mode():
            scores: np.ndarray = self._network(torch.from_numpy(features)).numpy()
        deadline.check()
        return scores

    @classmethod
    def open(cls, bundle: ModelBundle, facts: ItemFacts) -> LearnedRanker:
        """Return the ranker of a bundle.

        Args:
            bundle: The bundle.
            facts: What is known of the items today.

        Raises:
            BundleError: It is damaged, or was trained with other weights or to read other features.
        """
        folder = bundle.path / FOLDER
        sealed = read_seal(bundle)
        names = RankFeatures(facts).names
        if sealed.features != names:
            different = sorted(set(sealed.features) ^ set(names)) or ["their order"]
            raise BundleError(f"{folder}: reads other features than there are ({different[0]}); {_remedy(bundle.path)}")
        try:
            weights = load_file(folder / _WEIGHTS)
            num_members = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("members."))
            network = RankNetwork(len(names), num_members)
            network.load_state_dict(weights)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise BundleError(f"{folder}: cannot be read ({reason}); {_remedy(bundle.path)}") from None
        return cls(network.eval(), facts)


def has_ranker(bundle_path: Path) -> bool:
    """Return whether there is a ranker in a bundle, whatever state it is in."""
    return (bundle_path / FOLDER / NAME).exists()


def write_ranker(
    bundle: ModelBundle,
    network: RankNetwork,
    features: Sequence[str],
    *,
    num_candidates: int,
    num_questions: int,
    ndcg_before: float,
    ndcg_after: float,
) -> Path:
    """Write a ranker into its bundle, in the place of one that is there, and return its folder."""
    with atomic_folder(bundle.path / FOLDER) as folder:
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / _WEIGHTS)
        sealed = RankerSeal(
            format_version=FORMAT_VERSION,
            kind="learned",
            weights_digest=bundle.weights_digest,
            features=list(features),
            num_candidates=num_candidates,
            num_questions=num_questions,
            ndcg_before=ndcg_before,
            ndcg_after=ndcg_after,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            files=seal(folder),
        )
        (folder / NAME).write_text(sealed.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return bundle.path / FOLDER


def read_seal(bundle: ModelBundle) -> RankerSeal:
    """Return the seal of a bundle's ranker, after proving that it belongs there and is intact.

    Raises:
        BundleError: Says what is wrong and how to train it anew.
    """
    folder, remedy = bundle.path / FOLDER, _remedy(bundle.path)
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        found = content.get("format_version")
        if found != FORMAT_VERSION:
            raise BundleError(f"{folder}: expected ranker format {FORMAT_VERSION}, found {found}; {remedy}")
        sealed = RankerSeal.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"{folder}: {NAME} is damaged ({error.errors()[0]['msg'].lower()}); {remedy}") from None
    except BundleError:
        raise
    except (OSError, ValueError, AttributeError) as error:
        raise BundleError(f"{folder}: {NAME} cannot be read ({error}); {remedy}") from None
    if sealed.weights_digest != bundle.weights_digest:
        raise BundleError(
            f"{folder}: trained with other weights (digest {sealed.weights_digest[:12]}) than the model in "
            f"{bundle.path} (digest {bundle.weights_digest[:12]}); {remedy}"
        )
    broken = broken_seal(folder, sealed.files)
    if broken:
        raise BundleError(f"{folder}: {broken}; {remedy}")
    return sealed


def _remedy(bundle_path: Path) -> str:
    return f"train it anew with `towers train-ranker {bundle_path}`, or remove the folder"


def _member(num_inputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(num_inputs, HIDDEN),
        nn.GELU(),
        nn.Dropout(DROPOUT),
        nn.Linear(HIDDEN, HIDDEN),
        nn.GELU(),
        nn.Dropout(DROPOUT),
        nn.Linear(HIDDEN, 1),
    )
