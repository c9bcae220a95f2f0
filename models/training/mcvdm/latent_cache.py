"""Latents of training clips, encoded once and kept on disk for the latent stage of MC-VDM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from avatard.models import checkpoint
from avatard.models.device import choose_device
from avatard.models.mcvdm.autoencoder import Autoencoder
from avatard.models.mcvdm.landmark_encoder import Geometry, thumbnail
from avatard.models.mcvdm.latent import Planes
from avatard.models.pixels import normalise
from avatard.models.precision import inference_autocast
from avatard.models.training.clips import DataError
from avatard.models.training.mcvdm.dataset import Batch, Sampling, training_examples
from avatard.models.training.mcvdm.recipe import McvdmRecipe

#: Frames of an example, of its clip (the last ones), and of the clip of the low-latency profile, which is trained too.
FRAMES, CLIP, SHORT = 28, 16, 8
#: Examples in a file, and those that a GPU encodes at once.
SHARD, TOGETHER = 100, 25


def encode_examples(network: Autoencoder, batch: Batch) -> Batch:
    """Latents in float16: `xy16`, … of the long clip, `xy8`, … of the short one, `latent` of the portrait."""
    frames, reference = normalise(batch["frames"]), normalise(batch["reference"])
    motion = Geometry(batch["source"], batch["rigid"], batch["target"]).motion()[:, -CLIP:]
    with torch.inference_mode(), inference_autocast(frames.device):
        made = {"latent": network.encode(reference[:, None]).xy}
        for length in (CLIP, SHORT):
            planes = network.encode(frames[:, -length:], motion[:, -length:])
            made |= {f"{name}{length}": plane for name, plane in planes._asdict().items()}
    made = {name: plane.half() for name, plane in made.items()}
    small = thumbnail(batch["reference"]).round().byte()
    return made | {"small": small} | {key: batch[key] for key in ("source", "rigid", "target")}


def write_cache(
    data: Path, run: Path, recipe: McvdmRecipe, network: Autoencoder, device: str, written: Callable[[Path], None]
) -> None:
    """Encode the recipe's number of examples in shards, but those that are there; `written` is called with each."""
    run.mkdir(parents=True, exist_ok=True)
    shards = {run / f"cache_{first:06}.safetensors": first for first in range(0, recipe.examples, SHARD)}
    missing = {path: first for path, first in shards.items() if not path.exists()}
    if not missing:
        return
    place = choose_device(device)
    network.to(place)
    sampling = Sampling(frames=FRAMES, max_step=1, shown=CLIP, tail=CLIP)
    examples = training_examples(data, recipe, sampling, place, recipe.seed + 1)
    together = TOGETHER if place.type != "cpu" else 1
    for path, first in missing.items():
        numbers = range(first, min(first + SHARD, recipe.examples))
        parts = [numbers[n : n + together] for n in range(0, len(numbers), together)]
        made = [encode_examples(network, examples.batch(part)) for part in parts]
        checkpoint.save(path, {key: torch.cat([m[key] for m in made]) for key in made[0]}, {})
        written(path)


class CachedLatents:
    """The cache of a run, on a device.

    Raises:
        DataError: there is no cache.
    """

    def __init__(self, run: Path, seed: int, device: torch.device):
        shards = [checkpoint.load(path)[0] for path in sorted(run.glob("cache_*.safetensors"))]
        if not shards:
            raise DataError(f"no cache_*.safetensors in {run}: run the stage `cache` first")
        self.tensors = {key: torch.cat([shard[key] for shard in shards]).to(device) for key in shards[0]}
        self.size, self.seed, self.device = len(self.tensors["latent"]), seed, device

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The examples of a long run with these numbers: all of the cache in random order, again and again."""
        order = torch.tensor([self._place(*divmod(number, self.size)) for number in numbers], device=self.device)
        return {key: tensor[order] for key, tensor in self.tensors.items()}

    def _place(self, epoch: int, place: int) -> int:
        return int(_order(self.size, self.seed + epoch)[place])

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents by plane and channel, `[3, C]` each."""
        moments = [self.tensors[f"{name}{CLIP}"].float() for name in Planes._fields]
        return torch.stack([m.mean((0, 2, 3)) for m in moments]), torch.stack([m.std((0, 2, 3)) for m in moments])


@lru_cache(maxsize=2)
def _order(size: int, seed: int) -> Tensor:
    """A permutation."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))
