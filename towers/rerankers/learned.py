"""The learned re-ranker: a small network over the features of each candidate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from towers.bundle.bundle import ModelBundle
from towers.bundle.sealed_file import BundleError
from towers.bundle.sealed_folder import SealedFolder, reading
from towers.rerankers.candidate_features import RankFeatures
from towers.rerankers.item_statistics import ItemStatistics
from towers.rerankers.manifest import RankerManifest, remedy_of
from towers.rerankers.opening import ItemInputs
from towers.rerankers.reranker import Deadline, Shortlist

HIDDEN = 64
DROPOUT = 0.1

_WEIGHTS = "ranker.safetensors"
_FAR = 5.0


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
        """Return features as the members read them: standardised over all training data, and within the list.

        Unknown values become the mean.
        """
        among_all = ((features - self.mean) / self.spread).nan_to_num(0.0).clamp(-_FAR, _FAR)
        centre = among_all.mean(dim=-2, keepdim=True)
        spread = among_all.std(dim=-2, keepdim=True, correction=0) + 1e-6
        return torch.cat([among_all, ((among_all - centre) / spread).clamp(-_FAR, _FAR)], dim=-1)

    def forward(self, features: Float[Tensor, "candidates features"]) -> Float[Tensor, " candidates"]:
        """Return a score for each candidate of a list."""
        prepared = self.prepared(features)
        return torch.stack([member(prepared).squeeze(-1) for member in self.members]).mean(dim=0)

    def save(self, folder: Path) -> None:
        """Write what `LearnedRanker.open` reads into a folder."""
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / _WEIGHTS)


class LearnedRanker:
    """Scores candidates with a network trained on held-out targets; a `Reranker`.

    Args:
        network: In evaluation mode.
        statistics: Statistics of the items today.
    """

    def __init__(self, network: RankNetwork, statistics: ItemStatistics) -> None:
        self._network = network
        self._features = RankFeatures(statistics)

    def scores(self, shortlist: Shortlist, deadline: Deadline) -> Float32[np.ndarray, " candidates"]:
        """Return a score for each candidate; see `Reranker.scores`."""
        features = self._features.of(shortlist)
        deadline.check()
        with torch.inference_mode():
            scores: np.ndarray = self._network(torch.from_numpy(features)).numpy()
        deadline.check()
        return scores

    @classmethod
    def open(
        cls, bundle: ModelBundle, manifest: RankerManifest, folder: SealedFolder, items: ItemInputs
    ) -> LearnedRanker | None:
        """Return the re-ranker of a bundle, or None without item statistics; see `OpenableReranker.open`."""
        if items.statistics is None:
            return None
        remedy = remedy_of(bundle.path)
        names = RankFeatures(items.statistics).names
        if manifest.features != names:
            different = sorted(set(manifest.features) ^ set(names)) or ["their order"]
            raise BundleError(f"{folder.path}: reads other features than there are ({different[0]}); {remedy}")
        with reading(folder.path, remedy):
            weights = load_file(folder.file(_WEIGHTS))
            num_members = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("members."))
            if num_members > len(weights):
                raise ValueError(f"{num_members} networks with {len(weights)} tensors")
            network = RankNetwork(len(names), num_members)
            network.load_state_dict(weights)
        return cls(network.eval(), items.statistics)


class ListDropout(nn.Dropout):
    """Dropout of the same units for all candidates of a list, as for all steps of a sequence (Gal and Ghahramani 2016).

    Candidates are compared with each other, so the same network should score them; and drawing separately for each
    candidate takes half of the time of a training.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Return the units, `[..., candidates, units]`, some of them 0 and the others scaled to keep the mean."""
        mask = input.new_ones(*input.shape[:-2], 1, input.shape[-1])
        return input * super().forward(mask) if self.training else input


def _member(num_inputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(num_inputs, HIDDEN),
        nn.GELU(),
        ListDropout(DROPOUT),
        nn.Linear(HIDDEN, HIDDEN),
        nn.GELU(),
        ListDropout(DROPOUT),
        nn.Linear(HIDDEN, 1),
    )
