"""Latents of training clips, encoded once and kept on disk for the latent stage of MC-VDM."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from avatard.models import checkpoint
from avatard.models.face.morphable import MorphableModel
from avatard.models.mcvdm.autoencoder import Autoencoder
from avatard.models.mcvdm.landmark_encoder import Geometry, thumbnail
from avatard.models.mcvdm.latent import Planes
from avatard.models.pixels import normalise
from avatard.models.precision import inference_autocast
from avatard.models.training.clips import DataError, read_index
from avatard.models.training.mcvdm.dataset import Batch, Examples, Sampling
from avatard.models.training.mcvdm.recipe import McvdmRecipe

#: Frames of an example, of its clip (the last ones), and of the clip of the low-latency profile, which is trained too.
FRAMES, CLIP, SHORT = 28, 16, 8
#: Examples in a file.
SHARD = 100


def training_examples(data: Path, recipe: McvdmRecipe, sampling: Sampling, length: int, start: int = 0) -> Examples:
    """Examples of people who may be trained on."""
    entries = [entry for entry in read_index(data) if entry.split == "train"]
    mean_68 = MorphableModel.load().mean_68
    return Examples(data, entries, recipe.mix, mean_68, sampling, length, seed=recipe.seed + 1, start=start)


def encode_example(network: Autoencoder, batch: Batch) -> Batch:
    """Latents in float16: `xy16`, … of the long clip, `xy8`, … of the short one, `latent` of the portrait."""
    frames, reference = normalise(batch["frames"]), normalise(batch["reference"])
    motion = Geometry(batch["source"], batch["rigid"], batch["target"]).motion()[:, -CLIP:]
    with torch.inference_mode(), inference_autocast():
        made = {"latent": network.encode(reference[:, None]).xy}
        for length in (CLIP, SHORT):
            planes = network.encode(frames[:, -length:], motion[:, -length:])
            made |= {f"{name}{length}": plane for name, plane in planes._asdict().items()}
    made = {name: plane.half() for name, plane in made.items()}
    small = thumbnail(batch["reference"]).round().byte()
    return made | {"small": small} | {key: batch[key] for key in ("source", "rigid", "target")}


def write_cache(
    data: Path, run: Path, recipe: McvdmRecipe, network: Autoencoder, written: Callable[[Path], None]
) -> None:
    """Encode the recipe's number of examples in shards, but those that are there; `written` is called with each."""
    run.mkdir(parents=True, exist_ok=True)
    sampling = Sampling(frames=FRAMES, max_step=1, shown=CLIP, tail=CLIP)
    examples = training_examples(data, recipe, sampling, recipe.examples)
    for first in range(0, recipe.examples, SHARD):
        path = run / f"cache_{first:06}.safetensors"
        if path.exists():
            continue
        numbers = range(first, min(first + SHARD, recipe.examples))
        made = [encode_example(network, default_collate([examples[n]])) for n in numbers]
        checkpoint.save(path, {key: torch.cat([m[key] for m in made]) for key in made[0]}, {})
        written(path)


class CachedLatents(Dataset[Batch]):
    """The cache of a run, in memory; example `index` of a long run is drawn by its number.

    Raises:
        DataError: there is no cache.
    """

    def __init__(self, run: Path, seed: int):
        shards = [checkpoint.load(path)[0] for path in sorted(run.glob("cache_*.safetensors"))]
        if not shards:
            raise DataError(f"no cache_*.safetensors in {run}: run the stage `cache` first")
        self.tensors = {key: torch.cat([shard[key] for shard in shards]) for key in shards[0]}
        self.size = len(self.tensors["latent"])
        self.length, self.start, self.seed = self.size, 0, seed

    def part(self, length: int, start: int) -> CachedLatents:
        """The `length` examples from number `start` on."""
        chosen = copy(self)
        chosen.length, chosen.start = length, start
        return chosen

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        epoch, place = divmod(self.start + index, self.size)
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.seed + epoch))
        return {key: tensor[order[place]] for key, tensor in self.tensors.items()}

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents by plane and channel, `[3, C]` each."""
        moments = [self.tensors[f"{name}{CLIP}"].float() for name in Planes._fields]
        return torch.stack([m.mean((0, 2, 3)) for m in moments]), torch.stack([m.std((0, 2, 3)) for m in moments])
