"""What both stages of MC-VDM minimise in pixels, and where they look."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from avatard.models.face.topology import MOUTH
from avatard.models.mcvdm.decoder import CELLS, FACE, FRAME, Rendering, Window
from avatard.models.mcvdm.layers import clips_of
from avatard.models.training.mcvdm.regions import WEIGHTS, Region, weight_of
from avatard.models.training.perceptual import Perceptual, l1

#: What is rendered in training: windows on parts of a face, or faces as a whole.
WindowKind: TypeAlias = Literal["parts", "face"]
#: Cells of a training window (96 pixels), and pixels of the perceptual loss inside it.
WINDOW, PERCEPTUAL = 12, 64
#: Pixels at a window's border that its zero padding spoils.
MARGIN = 8
#: Weight of the mouth's squared error, beside the absolute one.
SQUARE = 8.0


def choose_window(kind: WindowKind, target: Tensor) -> Window:
    """What to render of each clip's frames: the whole face, or a window on mouth (75 %), eyes (10 %) or anything."""
    if kind == "face":  # one window for all: the device need not be asked where mouths are
        return FACE
    draw = torch.rand(len(target), 1, device=target.device)
    mouth, eyes = target[:, :, MOUTH].mean((1, 2)), target[:, :, 36:48].mean((1, 2))
    anywhere = torch.rand(len(target), 2, device=target.device) * FRAME
    centre = torch.where(draw < 0.75, mouth, torch.where(draw < 0.85, eyes, anywhere))
    centre = centre + 6 * torch.randn(centre.shape, device=target.device)
    corners = (centre / (FRAME // CELLS) - WINDOW / 2).round().long().clamp(0, CELLS - WINDOW)
    return Window([(y, x) for x, y in corners.tolist()], WINDOW)


def picture_losses(
    rendering: Rendering, frames: Tensor, regions: Tensor, window: Window, perceptual: Perceptual | None
) -> dict[str, Tensor]:
    """Losses of a rendered window against whole frames `[B, S, 3, 256, 256]`; `pictures` is their weighted sum.

    `regions` `[B, S, 1, 256, 256]` are labels of the frames' pixels.
    """
    frames, regions = window.crop(frames), window.crop(regions)
    weight = weight_of(regions)
    if window.size < CELLS:
        weight = weight * border(weight.shape[-1], weight.device)
    # Inside the open mouth nothing of the portrait is right. Stated, because the network is slow to find out.
    inside = (regions == Region.INSIDE).float()
    losses = {
        "frames": l1(rendering.frames, frames, weight),
        "painted": l1(rendering.painted, frames, weight * (0.1 + inside)),
        "warped": l1(rendering.warped, frames, weight),
    }
    paint = (1 - rendering.keep).clamp(1e-4, 1 - 1e-4)
    losses["inside"] = -((inside * paint.log() + (1 - inside) * (1 - paint).log()) * weight).mean() / weight.mean()
    losses["pictures"] = losses["frames"] + 0.5 * losses["painted"] + 0.5 * losses["warped"]
    losses["pictures"] = losses["pictures"] + 0.03 * losses["inside"]
    mouth = weight * (regions >= Region.LIPS)
    losses["square"] = ((rendering.frames.float() - frames).square() * mouth).mean() / weight.mean()
    losses["pictures"] = losses["pictures"] + SQUARE * losses["square"]
    losses["perceptual"] = frames.new_zeros(())
    if perceptual is not None:
        losses["perceptual"] = perceptual(*patches(rendering.frames, frames))
        losses["pictures"] = losses["pictures"] + 0.25 * losses["perceptual"]
    return losses


def flow_loss(flow: Tensor, teacher: Tensor, regions: Tensor) -> Tensor:
    """How far a flow `[B, S, 2, 32, 32]` is from the landmarks', most of all on the face; `regions` as above."""
    where = clips_of(avg_pool2d(weight_of(regions).flatten(0, 1), FRAME // CELLS), teacher)
    return l1(flow, teacher, where.clamp(max=WEIGHTS[Region.LIPS]).square())


def border(size: int, device: torch.device) -> Tensor:
    """1 inside, 0 along the border of a window `[size, size]`."""
    mask = torch.zeros(size, size, device=device)
    mask[MARGIN:-MARGIN, MARGIN:-MARGIN] = 1
    return mask


def patches(picture: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """One patch about the middle of one frame of each clip, `[B, 3, 64, 64]` of both."""
    size, half = picture.shape[-1], PERCEPTUAL // 2
    reach = min(size // 2 - half - MARGIN, 16 if size < FRAME else size)
    count, device = len(picture), picture.device
    frame = torch.randint(picture.shape[1], (count, 1, 1), device=device)
    corner = size // 2 - half + torch.randint(-reach, reach + 1, (2, count, 1), device=device)
    y, x = corner + torch.arange(PERCEPTUAL, device=device)
    clip = torch.arange(count, device=device)[:, None, None]
    cut = (clip, frame, slice(None), y[:, :, None], x[:, None])
    return tuple(whole[cut].permute(0, 3, 1, 2) for whole in (picture, target))  # type: ignore[return-value]
