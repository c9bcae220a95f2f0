"""AToM-Net's training data in a few small files, for a machine to which only small files go.

Sound is an MDCT with a step for each band and frame (20 dB below the band: about 60 kbit/s, and the log-mel spectrogram
stays within a decibel); landmarks are differences from frame to frame. Reading needs numpy alone.
"""

from __future__ import annotations

import json
import lzma
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avatard.models.training.packing import (
    LANDMARK_STEPS,
    BundleError,
    differences,
    from_differences,
    packed,
    unpacked,
)
from avatard.timebase import SAMPLES_PER_FRAME

Samples = NDArray[np.int16]
Landmarks = NDArray[np.float32]

#: Samples between two MDCT frames, coefficients of a band, and the quantiser's step in standard deviations of the band.
HOP, BAND, STEP = 320, 20, 0.35
#: Band levels are stored in halves of a power of two; bands below the lowest are silent.
LOWEST_LEVEL = -28
MAGIC = b"avatard atom bundle 1\n"


@dataclass(frozen=True)
class BundledClip:
    """What is said of a clip; its sound is as long as its picture."""

    source: str
    clip: str
    speaker: str
    split: str
    frames: int
    offset: float  # landmark frame n belongs to audio frame n + offset


@dataclass(frozen=True)
class Bundle:
    """All clips, one after the other."""

    clips: list[BundledClip]
    landmarks: Landmarks  # [F, 68, 3]
    audio: Samples  # [F * 640]


def mdct_basis() -> NDArray[np.float32]:
    """The MDCT of a sine window `[2 HOP, HOP]`; its own inverse with overlap-add."""
    n, k = np.arange(2 * HOP)[:, None], np.arange(HOP)
    window = np.sin(np.pi * (n + 0.5) / (2 * HOP))
    waves: NDArray[np.float64] = np.sqrt(2 / HOP) * window * np.cos(np.pi / HOP * (n + 0.5 + HOP / 2) * (k + 0.5))
    return waves.astype(np.float32)


def encode_audio(samples: Samples, basis: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Quantised coefficients `[N + 1, HOP]` and levels `[N + 1, HOP / BAND]` of N * HOP samples."""
    padded = np.pad(samples.astype(np.float32) / 32768, HOP).reshape(-1, HOP)
    coefficients = np.concatenate([padded[:-1], padded[1:]], axis=1) @ basis
    bands = coefficients.reshape(len(coefficients), -1, BAND)
    power = np.square(bands).mean(-1) + 1e-12
    levels = np.rint(np.log2(power)).clip(LOWEST_LEVEL, 8).astype(np.int8)
    steps = STEP * np.exp2(levels / 2.0)[..., None]
    quantised = np.where(levels[..., None] > LOWEST_LEVEL, np.rint(bands / steps), 0).clip(-127, 127)
    return quantised.reshape(len(coefficients), HOP).astype(np.int8), levels


def decode_audio(quantised: NDArray[np.int8], levels: NDArray[np.int8], basis: NDArray[np.float32]) -> Samples:
    """Samples `[N * HOP]`, the inverse of `encode_audio` with the same `mdct_basis`."""
    steps = (STEP * np.exp2(levels / 2.0)).astype(np.float32)[..., None]
    bands = quantised.reshape(len(quantised), -1, BAND) * steps
    waves = bands.reshape(len(quantised), HOP) @ basis.T
    samples = waves[:-1, HOP:] + waves[1:, :HOP]
    decoded: Samples = np.rint(samples.ravel() * 32768).clip(-32768, 32767).astype(np.int16)
    return decoded


def write(folder: Path, clips: Sequence[tuple[BundledClip, Landmarks, Samples]], part_bytes: int) -> list[Path]:
    """Write a bundle as `part_0.bin`, `part_1.bin`, ... of at most `part_bytes`; the files."""
    basis = mdct_basis()
    coded = [encode_audio(samples, basis) for _, _, samples in clips]
    huffman = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    sections = [
        lzma.compress(json.dumps([asdict(clip) for clip, _, _ in clips]).encode()),
        lzma.compress(packed(np.concatenate([differences(landmarks, LANDMARK_STEPS) for _, landmarks, _ in clips]))),
        lzma.compress(packed(np.concatenate([np.diff(levels, axis=0, prepend=0) for _, levels in coded]))),
        huffman.compress(packed(np.concatenate([quantised for quantised, _ in coded]))) + huffman.flush(),
    ]
    sizes = json.dumps([[len(part), zlib.crc32(part)] for part in sections]).encode() + b"\n"
    whole = b"".join([MAGIC, sizes, *sections])
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, start in enumerate(range(0, len(whole), part_bytes)):
        paths.append(folder / f"part_{number}.bin")
        paths[-1].write_bytes(whole[start : start + part_bytes])
    return paths


def read(folder: Path) -> Bundle:
    """Read what `write` wrote. Raises `BundleError`."""
    whole = b"".join(path.read_bytes() for path in sorted(folder.glob("part_*.bin")))
    if not whole.startswith(MAGIC):
        raise BundleError(f"{folder} has no bundle of AToM-Net's training data")
    end = whole.index(b"\n", len(MAGIC)) + 1
    sections = []
    for size, digest in json.loads(whole[len(MAGIC) : end]):
        part = whole[end : end + size]
        if zlib.crc32(part) != digest:
            raise BundleError(f"{folder}: part_*.bin are cut off or altered")
        sections.append(part)
        end += size
    clips = [BundledClip(**row) for row in json.loads(lzma.decompress(sections[0]))]
    moved = unpacked(lzma.decompress(sections[1]), np.int16, (-1, 68, 3))
    level_steps = unpacked(lzma.decompress(sections[2]), np.int8, (-1, HOP // BAND))
    quantised = unpacked(zlib.decompress(sections[3], -15), np.int8, (-1, HOP))
    basis = mdct_basis()
    landmarks, audio, frame, row = np.empty(moved.shape, np.float32), [], 0, 0
    for clip in clips:
        stop, end_row = frame + clip.frames, row + clip.frames * SAMPLES_PER_FRAME // HOP + 1
        landmarks[frame:stop] = from_differences(moved[frame:stop], LANDMARK_STEPS)
        levels = np.cumsum(level_steps[row:end_row], axis=0, dtype=np.int8)
        audio.append(decode_audio(quantised[row:end_row], levels, basis))
        frame, row = stop, end_row
    return Bundle(clips, landmarks, np.concatenate(audio))
