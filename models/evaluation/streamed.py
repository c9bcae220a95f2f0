"""What serving does hop by hop, for whole clips at once: windows of sound, their features, and motion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avatard.models.atom.model import Atom
from avatard.models.speech import SpeechEncoder
from avatard.timebase import LANDMARKS, SAMPLES_PER_FRAME

#: Windows that go through the speech encoder together.
BATCH = 16


def serving_windows(
    samples: NDArray[np.floating], window_frames: int, hop: int, lookahead: int
) -> Iterator[NDArray[np.float32]]:
    """The sound `[window_frames * 640]` that a stream encodes at each hop; silence around `samples` `[T]`."""
    count = len(samples) // SAMPLES_PER_FRAME
    before = np.zeros((window_frames - hop - lookahead) * SAMPLES_PER_FRAME, np.float32)
    after = np.zeros((hop + lookahead) * SAMPLES_PER_FRAME, np.float32)
    padded = np.concatenate([before, samples.astype(np.float32), after])
    for first in range(0, count, hop):
        start = first * SAMPLES_PER_FRAME
        yield padded[start : start + window_frames * SAMPLES_PER_FRAME]


@torch.inference_mode()
def encode_windows(
    speech: SpeechEncoder, samples: NDArray[np.floating], window_frames: int, hop: int, lookahead: int
) -> Tensor:
    """The speech encoder's features of `serving_windows`, `[hops, window_frames, dim]`."""
    windows = torch.from_numpy(np.stack(list(serving_windows(samples, window_frames, hop, lookahead))))
    return torch.cat([speech(part) for part in torch.split(windows, BATCH)])


def new_features(windows: Tensor, frames: int, hop: int, lookahead: int) -> NDArray[np.float32]:
    """Features `[frames, dim]`, each from the window of `encode_windows` in which its frame is new."""
    end = windows.shape[1] - lookahead
    features: NDArray[np.float32] = windows[:, end - hop : end].reshape(-1, windows.shape[-1])[:frames].numpy()
    return features


@torch.inference_mode()
def roll_out(
    atom: Atom,
    windows: Iterable[Tensor],
    reference: Tensor,
    *,
    steps: int,
    lookahead: int,
    hop: int,
    prefix: bool = True,
) -> Tensor:
    """Displacements `[B, hop · n, 68, 3]` of B streams that run side by side, for n hops.

    Args:
        atom: the network.
        windows: features `[B, audio_frames, dim]` of each hop.
        reference: c_lmd `[B, 2, 68, 3]`.
        steps: of the sampler, which starts from zeros.
        lookahead: frames.
        hop: new frames.
        prefix: continue what was emitted; without, every window is made afresh, by plain regression if `steps` is 1.
    """
    frames = atom.config.frames
    emitted = torch.zeros(len(reference), frames - hop if prefix else 0, LANDMARKS, 3, device=reference.device)
    made = []
    for window in windows:
        noise = torch.zeros(len(reference), frames - emitted.shape[1], LANDMARKS, 3, device=reference.device)
        new = atom.sample(window, reference, emitted, noise, steps=steps, lookahead=lookahead).float()[:, -hop:]
        if prefix:
            emitted = torch.cat([emitted[:, hop:], new], dim=1)
        made.append(new)
    return torch.cat(made, dim=1)
