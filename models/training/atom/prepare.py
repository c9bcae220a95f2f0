"""What AToM-Net is trained on, computed once: speech features on serving windows, neutral faces, sound offsets."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from avatard.models import checkpoint
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import MESH_TO_68, mouth_opening
from avatard.models.precision import inference_autocast
from avatard.models.speech import SpeechEncoder
from avatard.models.training.atom.audio_augmentation import (
    SILENT_TAIL_FRAMES,
    Samples,
    Track,
    among_silence,
    among_speech,
    at_tempo,
    no_speech,
)
from avatard.models.training.atom.dataset import closed_mouth
from avatard.models.training.av_sync import MAX_LAG, Offset, SyncClip
from avatard.models.training.clips import Clip, Entry
from avatard.timebase import SAMPLES_PER_FRAME

#: Windows are cached every second frame; the random look-ahead gives training the phases between.
WINDOW_STRIDE = 2
#: Tracks of sound that is no speech, and their length in frames.
NO_SPEECH_TRACKS, NO_SPEECH_FRAMES = 96, 64
#: How much faster or slower a clip's second voice speaks, and how often it begins with silence.
TEMPO_RANGE, COLD_SHARE = (0.8, 1.25), 0.5
#: Length of the pieces whose features offsets are estimated from: the shortest clips of LRW-AR.
SYNC_FRAMES = 28


def rng_of(name: str) -> np.random.Generator:
    """A generator that depends on nothing but a clip's name."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def waveform(clip: Clip) -> Samples:
    """A clip's sound in [-1, 1], whole frames."""
    samples: Samples = np.divide(clip.audio, 32768, dtype=np.float32)
    return samples[: len(samples) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME]


def extract(speech: SpeechEncoder, track: Track, ends: NDArray[np.int16], window_frames: int) -> torch.Tensor:
    """Features `[W, window_frames, dim]` fp16 of the windows that end at frames `ends`."""
    windows = torch.from_numpy(np.stack([track.window(int(end), window_frames) for end in ends]))
    with torch.inference_mode(), inference_autocast():
        return torch.cat([speech(part) for part in torch.split(windows, 32)]).half()


def extract_clip(
    speech: SpeechEncoder, data: Path, entry: Entry, neighbours: list[Entry], path: Path, window_frames: int
) -> None:
    """Write the features of one clip: among speech, in another voice and, for every second clip, among silence."""
    training = entry.split == "train"
    samples, rng = waveform(Clip(data / entry.path)), rng_of(f"{entry.source}/{entry.clip}")
    frames = len(samples) // SAMPLES_PER_FRAME
    before = np.zeros(0, np.float32)
    if neighbours and training:  # in validation a stream starts with the clip
        before = waveform(Clip(data / neighbours[rng.integers(len(neighbours))].path))[
            -window_frames * SAMPLES_PER_FRAME :
        ]
    first = window_frames // 5 // WINDOW_STRIDE * WINDOW_STRIDE
    ends = np.arange(first, frames + 1, WINDOW_STRIDE, dtype=np.int16)
    track = among_speech(samples, before, rng) if training else Track(samples, 0)
    tensors = {"speech": extract(speech, track, ends, window_frames), "speech_ends": torch.from_numpy(ends)}
    if training and rng.random() < 0.5:
        ends = np.arange(2, frames + SILENT_TAIL_FRAMES + 1, WINDOW_STRIDE, dtype=np.int16)
        track = among_silence(samples, window_frames, rng)
        tensors |= {"silence": extract(speech, track, ends, window_frames), "silence_ends": torch.from_numpy(ends)}
    metadata = {"source": entry.source, "clip": entry.clip, "speaker": entry.speaker}
    if training:
        tempo = rng.uniform(*TEMPO_RANGE)
        voice, heard_before = at_tempo(samples, tempo), at_tempo(before, tempo)
        if rng.random() < COLD_SHARE:
            heard_before = heard_before[:0]
        ends = np.arange(first, len(voice) // SAMPLES_PER_FRAME + 1, WINDOW_STRIDE, dtype=np.int16)
        track = among_speech(voice, heard_before, rng)
        tensors |= {"voice": extract(speech, track, ends, window_frames), "voice_ends": torch.from_numpy(ends)}
        metadata["tempo"] = str(tempo)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, tensors, metadata)


def extract_all(
    speech: SpeechEncoder,
    data: Path,
    out: Path,
    entries: list[Entry],
    window_frames: int,
    no_speech_tracks: int = NO_SPEECH_TRACKS,
) -> None:
    """Features of every clip with sound, and of sound that is no speech."""
    voices: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        voices.setdefault((entry.source, entry.speaker), []).append(entry)
    for entry in tqdm(entries, unit="clip", desc="features"):
        path = out / "features" / entry.path
        if not path.exists():
            others = [other for other in voices[entry.source, entry.speaker] if other.clip != entry.clip]
            extract_clip(speech, data, entry, others, path, window_frames)
    path = out / "features" / "no_speech.safetensors"
    if not path.exists():
        rng = rng_of("no speech")
        frames = max(NO_SPEECH_FRAMES, window_frames)
        ends = np.arange(window_frames, frames + 1, 4, dtype=np.int16)
        parts = [extract(speech, no_speech(frames, rng), ends, window_frames) for _ in range(no_speech_tracks)]
        checkpoint.save(path, {"silence": torch.cat(parts)}, {})


def neutral_faces(data: Path, out: Path, entries: list[Entry]) -> None:
    """Write motion.safetensors: each person's closed mouth, each frame's neutral face, the 3DMM's identity basis."""
    morphable = MorphableModel.load()
    tensors: dict[str, NDArray[np.float32]] = {"identity": morphable.identity[:, MESH_TO_68].astype(np.float32)}
    people: dict[str, list[NDArray[np.float32]]] = {}
    for entry in entries:
        landmarks = Clip(data / entry.path).landmarks
        tensors[f"neutrals/{entry.source}/{entry.clip}"] = morphable.neutral(landmarks).astype(np.float32)
        people.setdefault(f"{entry.source}/{entry.speaker}", []).append(landmarks)
    for person, clips in people.items():
        tensors[f"closed/{person}"] = closed_mouth(np.concatenate(clips))
    checkpoint.save(out / "motion.safetensors", tensors, {})


def sync_clip(speech: SpeechEncoder, data: Path, entry: Entry) -> SyncClip:
    """A clip's mouth opening and the features of each of its frames.

    The sound is encoded in pieces of one length. Features depend on where in a window a moment lies, so longer windows
    for longer clips would move their estimate against that of short ones.
    """
    clip = Clip(data / entry.path)
    samples, opening = waveform(clip), mouth_opening(clip.landmarks)
    frames = min(len(opening), len(samples) // SAMPLES_PER_FRAME)
    starts = np.unique(np.append(np.arange(0, frames - SYNC_FRAMES, SYNC_FRAMES), max(0, frames - SYNC_FRAMES)))
    size = min(SYNC_FRAMES, frames)
    pieces = np.stack([samples[start * SAMPLES_PER_FRAME : (start + size) * SAMPLES_PER_FRAME] for start in starts])
    with torch.inference_mode(), inference_autocast():
        encoded = speech(torch.from_numpy(pieces)).float().numpy()
    features = np.empty((frames, speech.dim // 2), np.float32)
    for start, piece in zip(starts, encoded, strict=True):
        features[start : start + size] = piece.reshape(size, 2, -1).mean(axis=1)  # both 20 ms tokens of a frame
    return SyncClip(features, opening[:frames], f"{entry.source}/{entry.speaker}")


def write_offsets(out: Path, entries: list[Entry], offsets: list[Offset]) -> dict[str, Any]:
    """Write offsets.json; its histogram by source."""
    clips = {
        f"{entry.source}/{entry.clip}": {
            "frames": offset.frames,
            "exact": round(offset.exact, 3),
            "correlation": round(offset.correlation, 3),
            "kept": offset.kept,
        }
        for entry, offset in zip(entries, offsets, strict=True)
    }
    histogram = {}
    for source in sorted({entry.source for entry in entries}):
        found = [offset for entry, offset in zip(entries, offsets, strict=True) if entry.source == source]
        counts = Counter(offset.frames for offset in found if offset.kept)
        histogram[source] = {
            "clips": len(found),
            "dropped": sum(not offset.kept for offset in found),
            "offset_frames": {str(lag): counts[lag] for lag in range(-MAX_LAG, MAX_LAG + 1) if counts[lag]},
        }
    (out / "offsets.json").write_text(json.dumps({"histogram": histogram, "clips": clips}, indent=1))
    return histogram
