"""SyncNet: how well lips fit a voice, as LSE-D and LSE-C. Evaluation only, never shipped.

Sources: Chung and Zisserman, "Out of time: automated lip sync in the wild" (2016), whose networks and names of weights
these are (`syncnet_v2`); Prajwal et al., "A Lip Sync Expert Is All You Need" (2020), for the two errors. The voice is
seen as 13 mel-frequency cepstral coefficients at 100 Hz, after Davis and Mermelstein (1980), computed as
`python_speech_features` does.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from avatard.models import checkpoint
from avatard.timebase import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME

SIDE = 224
#: The part of an aligned crop that it sees: from the forehead, as far below the chin as 0.4 of the face's half height.
HEAD = (slice(41, 256), slice(20, 235))
#: Frames that are compared with a stretch of the voice, and by how many the two are shifted at most.
FRAMES, SHIFTS = 5, 15
BATCH = 16

MFCC_WINDOW, MFCC_STEP, MFCC_FFT = 400, 160, 512  # samples
MFCC_BANDS, MFCC_COUNT, MFCC_LIFTER, MFCC_PREEMPHASIS = 26, 13, 22, 0.97
STEPS_PER_FRAME = SAMPLES_PER_FRAME // MFCC_STEP


def _mel_bands() -> NDArray[np.float64]:
    """Triangular filters `[26, 257]`."""
    top = 2595 * math.log10(1 + SAMPLE_RATE_HZ / 2 / 700)
    hz = 700 * (10 ** (np.linspace(0, top, MFCC_BANDS + 2) / 2595) - 1)
    edges = np.floor((MFCC_FFT + 1) * hz / SAMPLE_RATE_HZ)[:, None]
    bins = np.arange(MFCC_FFT // 2 + 1)
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    bands: NDArray[np.float64] = np.where(bins < edges[1:-1], rise, fall).clip(0, 1)
    return bands


def mfcc(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """Coefficients `[13, 100 a second]` of 16 kHz samples `[T]`; the first one is the log energy."""
    signal = samples.astype(np.float64)
    signal = np.append(signal[:1], signal[1:] - MFCC_PREEMPHASIS * signal[:-1])
    count = 1 + max(0, -(-(len(signal) - MFCC_WINDOW) // MFCC_STEP))
    signal = np.pad(signal, (0, max(0, (count - 1) * MFCC_STEP + MFCC_WINDOW - len(signal))))
    windows = np.lib.stride_tricks.sliding_window_view(signal, MFCC_WINDOW)[::MFCC_STEP][:count]
    power = np.square(np.abs(np.fft.rfft(windows, MFCC_FFT))) / MFCC_FFT
    tiny = np.finfo(float).eps
    bands = np.log(np.maximum(power @ _mel_bands().T, tiny))
    k, n = np.arange(MFCC_COUNT)[:, None], np.arange(MFCC_BANDS)
    cosines = np.sqrt(2 / MFCC_BANDS) * np.cos(np.pi * k * (2 * n + 1) / (2 * MFCC_BANDS))
    cepstrum = (bands @ cosines.T) * (1 + MFCC_LIFTER / 2 * np.sin(np.pi * np.arange(MFCC_COUNT) / MFCC_LIFTER))
    cepstrum[:, 0] = np.log(np.maximum(power.sum(axis=1), tiny))
    coefficients: NDArray[np.float32] = cepstrum.T.astype(np.float32)
    return coefficients


def _stack(*layers: tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...], nn.Module | None]) -> nn.Sequential:
    """Convolutions (outputs, kernel, stride, padding), each with batch normalisation, ReLU, and a pooling if given."""
    modules: list[nn.Module] = []
    inputs = 3 if len(layers[0][1]) == 3 else 1
    for outputs, kernel, stride, padding, pool in layers:
        if len(kernel) == 3:
            modules += [nn.Conv3d(inputs, outputs, kernel, stride, padding), nn.BatchNorm3d(outputs)]  # type: ignore[arg-type]
        else:
            modules += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.BatchNorm2d(outputs)]  # type: ignore[arg-type]
        modules += [nn.ReLU(), *([pool] if pool is not None else [])]
        inputs = outputs
    return nn.Sequential(*modules)


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))


class SyncNet(nn.Module):
    """Two towers that put lips and voice into one space."""

    def __init__(self) -> None:
        super().__init__()
        one, same = (1, 1), (1, 1)
        self.netcnnaud = _stack(
            (64, (3, 3), one, same, nn.MaxPool2d((1, 1), (1, 1))),
            (192, (3, 3), one, same, nn.MaxPool2d((3, 3), (1, 2))),
            (384, (3, 3), one, same, None),
            (256, (3, 3), one, same, None),
            (256, (3, 3), one, same, nn.MaxPool2d((3, 3), (2, 2))),
            (512, (5, 4), one, (0, 0), None),
        )
        halve = nn.MaxPool3d((1, 3, 3), (1, 2, 2))
        self.netcnnlip = _stack(
            (96, (5, 7, 7), (1, 2, 2), (0, 0, 0), halve),
            (256, (1, 5, 5), (1, 2, 2), (0, 1, 1), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))),
            (256, (1, 3, 3), (1, 1, 1), (0, 1, 1), None),
            (256, (1, 3, 3), (1, 1, 1), (0, 1, 1), None),
            (256, (1, 3, 3), (1, 1, 1), (0, 1, 1), nn.MaxPool3d((1, 3, 3), (1, 2, 2))),
            (512, (1, 6, 6), (1, 1, 1), (0, 0, 0), None),
        )
        self.netfcaud, self.netfclip = _head(), _head()

    @classmethod
    def load(cls, path: str | Path) -> SyncNet:
        """From a safetensors file of `syncnet_v2`'s weights. Raises `CheckpointError`."""
        return checkpoint.fill(cls(), path)

    def lips(self, x: Tensor) -> Tensor:
        """Frames `[B, 3, 5, 224, 224]`, blue, green, red, 0 to 255 → `[B, 1024]`."""
        embedding: Tensor = self.netfclip(self.netcnnlip(x).flatten(1))
        return embedding

    def voice(self, x: Tensor) -> Tensor:
        """Coefficients `[B, 1, 13, 20]` → `[B, 1024]`."""
        embedding: Tensor = self.netfcaud(self.netcnnaud(x).flatten(1))
        return embedding

    @torch.inference_mode()
    def errors(self, crops: NDArray[np.uint8], samples: NDArray[np.int16]) -> tuple[float, float]:
        """LSE-D and LSE-C of aligned crops `[N, 256, 256, 3]` RGB and their voice, 16 kHz.

        LSE-D is the mean distance at the shift where it is least, LSE-C what the median over shifts of up to 15 frames
        has more. NaN for fewer than six frames.
        """
        heads = [cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for crop in crops[:, *HEAD, ::-1]]
        frames = torch.from_numpy(np.stack(heads)).permute(3, 0, 1, 2).float()  # (3, N, 224, 224)
        coefficients = torch.from_numpy(mfcc(samples))
        count = min(len(crops), len(samples) // SAMPLES_PER_FRAME) - FRAMES
        if count < 1:
            return math.nan, math.nan
        seen, spoken = [], []
        for first in range(0, count, BATCH):
            at = range(first, min(first + BATCH, count))
            stretches = [slice(n * STEPS_PER_FRAME, (n + FRAMES) * STEPS_PER_FRAME) for n in at]
            seen.append(self.lips(torch.stack([frames[:, n : n + FRAMES] for n in at])))
            spoken.append(self.voice(torch.stack([coefficients[None, :, stretch] for stretch in stretches])))
        shifted = F.pad(torch.cat(spoken), (0, 0, SHIFTS, SHIFTS)).unfold(0, 2 * SHIFTS + 1, 1)  # (count, 1024, 31)
        distances = F.pairwise_distance(torch.cat(seen)[:, None], shifted.transpose(1, 2)).mean(0)  # (31,)
        least = float(distances.min())
        return least, float(distances.median()) - least
