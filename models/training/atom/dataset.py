"""Training windows for AToM-Net, from the data folder and what `scripts/prepare_motion.py` wrote beside it.

A window pairs one cached speech window with the S landmark frames that end `lookahead` frames before it; the loss
counts them from the person's resting face. Frames without known landmarks carry no weight.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from avatard.frame import raised_cosine
from avatard.models import checkpoint
from avatard.models.atom.model import REST_MODES, Atom, reference_of, rest_features
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import LIP_68, MIRROR_68, REST_68, UPPER_LIP, mouth_opening
from avatard.models.training.atom.audio_augmentation import CLOSING_FRAMES, OPENING_FRAMES, frames_at_tempo
from avatard.models.training.clips import Clip, DataError, Entry, read_index
from avatard.models.training.splits import Split

Array = NDArray[np.float32]
Key = TypeVar("Key")

#: Noise of the reference: of identity (standard deviations of the 3DMM) and of every coordinate of the portrait (IOD).
IDENTITY_NOISE, PORTRAIT_NOISE = 2.0, 0.01
#: How often the portrait is one of a closed mouth, as portraits are and frames of speech are not: otherwise the network
#: takes closed lips for a shy mouth.
CLOSED_SHARE = 0.3
#: How often the reference is somebody else's of the same source: how far a mouth opens must not depend on identity.
STRANGER_SHARE = 0.1
#: How often a window gets another voice: with the mean features of another clip of its source.
VOICE_SHARE = 0.5
#: Share of a person's frames, those with the least open mouth, whose median is the closed mouth.
CLOSED_FRAMES = 0.08
#: Frames at the end of a window that describe a voice: the clip's own, not the sound before it.
HEARD_FRAMES = 6


def clips_with_sound(folder: Path) -> list[Entry]:
    """The videos of a prepared folder that have sound. Raises `DataError` where it was not prepared."""
    found = []
    for entry in read_index(folder):
        with safe_open(folder / entry.path, framework="numpy") as file:
            if "audio" in file.keys():  # noqa: SIM118
                found.append(entry)
    return found


@dataclass(frozen=True)
class Batch:
    """Windows for one training step."""

    audio: Tensor  # [B, audio_frames, speech_dim]
    target: Tensor  # [B, S, 68, 3], landmarks
    weight: Tensor  # [B, S], 0 where the landmarks are unknown
    reference: Tensor  # [B, 2, 68, 3], c_lmd
    face: Tensor  # [B, 2, 68, 3], whose it is: c_lmd without noise

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        return Batch(*(part.to(device) for part in vars(self).values()))


@dataclass(frozen=True)
class FacesOfClip:
    """What the statistics of a network need of a clip; see `MotionClip`."""

    landmarks: Array  # [N, 68, 3]
    neutrals: Array  # [N, 68, 3]
    closed: Array  # [68, 3]
    closed_neutral: Array  # [68, 3]


@dataclass(frozen=True)
class MotionClip:
    """A clip in step with its sound."""

    entry: Entry
    landmarks: Array  # [N, 68, 3]
    neutrals: Array  # [N, 68, 3], the neutral face that each frame alone suggests
    closed: Array  # [68, 3], the face at rest, mouth closed
    closed_neutral: Array  # [68, 3], the neutral face that it suggests
    offset: int  # landmark frame n belongs to audio frame n + offset
    speech: Tensor  # [W, audio_frames, dim] fp16, among speech
    speech_ends: NDArray[np.int16]  # frame at which each window ends
    silence: Tensor = field(default_factory=lambda: torch.zeros(0))  # [V, audio_frames, dim] fp16, among silence
    silence_ends: NDArray[np.int16] = field(default_factory=lambda: np.zeros(0, np.int16))


def closed_mouth(frames: Array) -> Array:
    """A person's closed mouth `[68, 3]`: the median of those `frames` `[N, 68, 3]` with the least open mouth."""
    opening = mouth_opening(frames)
    closed: Array = np.median(frames[opening <= np.quantile(opening, CLOSED_FRAMES)], axis=0).astype(np.float32)
    return closed


def closed_face(landmarks: Array, person: Array) -> Array:
    """The person's closed mouth `person` `[68, 3]` on this clip's face, hung from its upper lip.

    Speech hardly moves that. Registration differs between clips by more than speech moves an upper lip.
    """
    usual = np.median(landmarks, axis=0).astype(np.float32)
    closed: Array = person + (usual - person)[UPPER_LIP].mean(axis=0)
    closed[REST_68] = usual[REST_68]
    return closed


def mirrored(landmarks: Array) -> Array:
    """Landmarks `[..., 68, 3]` of the face in a mirror."""
    flipped = landmarks[..., MIRROR_68, :].copy()
    flipped[..., 0] *= -1
    return flipped


def rest_regression(clips: Sequence[MotionClip | FacesOfClip], frames: int = 2) -> tuple[Array, Array]:
    """The modes `[204, K]` and the map `[K + 2, 204]` of `Atom.resting`: from one frame to its clip's closed mouth.

    Modes are those along which faces move within clips; the map is a linear regression. `frames` of each clip take
    part, evenly spaced, and its closed mouth, and their mirror images.
    """
    portraits, neutrals, closed, moved = [], [], [], []
    for clip in clips:
        at = np.linspace(0, len(clip.landmarks) - 1, frames).astype(int)
        portraits.append(np.concatenate([clip.landmarks[at], clip.closed[None]]))
        neutrals.append(np.concatenate([clip.neutrals[at], clip.closed_neutral[None]]))
        closed.append(np.repeat(clip.closed[None], frames + 1, axis=0))
        moved.append(clip.landmarks[at] - clip.landmarks.mean(axis=0))
    portrait, neutral, rest, motion = (
        torch.from_numpy(np.concatenate([part, mirrored(part)])).double()
        for part in map(np.concatenate, (portraits, neutrals, closed, moved))
    )
    modes = torch.linalg.eigh(motion.flatten(1).T @ motion.flatten(1))[1][:, -REST_MODES:]
    known = rest_features(portrait, portrait - neutral, modes)
    regression = torch.linalg.lstsq(known, (rest - portrait).flatten(1)).solution
    return modes.float().numpy(), regression.float().numpy()


def set_statistics(atom: Atom, clips: Sequence[MotionClip | FacesOfClip]) -> None:
    """Give a network one scale per stream, how far a point ever goes, and what leads to a resting face."""
    moved = np.concatenate([clip.landmarks - clip.closed for clip in clips])
    scale = np.zeros((68, 1), np.float32)
    for stream in (LIP_68, REST_68):
        scale[stream] = moved[:, stream].std()
    bound = np.quantile(np.abs(moved), 0.999, axis=0) * 1.2 + 0.01
    atom.scale.copy_(torch.from_numpy(scale))
    atom.bound.copy_(torch.from_numpy(bound))
    atom.reference_scale.fill_(float(np.std([clip.closed for clip in clips])))
    for buffer, value in zip((atom.modes, atom.to_rest), rest_regression(clips), strict=True):
        buffer.copy_(torch.from_numpy(value))


def at_audio(clip: MotionClip, end: int, frames: int, among_silence: bool) -> tuple[Array, Array]:
    """Landmarks `[frames, 68, 3]` of the audio frames before `end`, and whether they are known `[frames]`.

    Among silence the mouth is closed before and after the sound; it opens and closes in a raised cosine.
    """
    sound = len(clip.landmarks)  # clips have as much sound as picture
    when = np.arange(end - frames, end)
    index = when - clip.offset
    known = (index >= 0) & (index < sound)
    found = clip.landmarks[index.clip(0, sound - 1)]
    if not among_silence:
        return found, known.astype(np.float32)
    before, after = -when, when - sound + 1  # frames until the sound starts, since it ended (1 = the first one)
    # Where the picture runs beyond the sound it shows speech without its sound: hold the edge frame instead.
    found = np.where((before > 0)[:, None, None], clip.landmarks[max(0, -clip.offset)], found)
    found = np.where((after > 0)[:, None, None], clip.landmarks[min(sound, sound - clip.offset) - 1], found)
    away = np.where(before > 0, before / OPENING_FRAMES, np.where(after > 0, after / CLOSING_FRAMES, 0))
    share = raised_cosine(away)[:, None, None].astype(np.float32)
    silent = (before > 0) | (after > 0)
    return found * (1 - share) + clip.closed * share, (known | silent).astype(np.float32)


def windows(tensors: dict[str, Tensor], name: str) -> tuple[Tensor, NDArray[np.int16]]:
    """Windows among what `name` says, and the frames at which they end; none where they were not prepared."""
    if name not in tensors:
        return tensors["speech"][:0], np.zeros(0, np.int16)
    return tensors[name], tensors[f"{name}_ends"].numpy()


ReferenceFace: TypeAlias = tuple[Array, Array]  # landmarks [68, 3] of a portrait and its neutral face


class MotionWindow(NamedTuple):
    """One example."""

    audio: Tensor  # [audio_frames, dim]
    landmarks: Array  # [S, 68, 3]
    known: Array  # [S], whether there are landmarks
    portrait: ReferenceFace  # of the clip's person
    shown: ReferenceFace  # what the network is given for it


def draw_by_size(groups: Mapping[Key, Sequence[int]], rng: np.random.Generator) -> Key:
    """A group, with a share that goes by the square root of its size."""
    share = np.sqrt([len(members) for members in groups.values()])
    return list(groups)[rng.choice(len(share), p=share / share.sum())]


class MotionData:
    """All clips of a split that are in step with their sound, in memory.

    Args:
        data: what `scripts/prepare_data.py` wrote.
        prepared: what `scripts/prepare_motion.py` wrote.
        split: whose clips.
        exclude: a source to leave out.

    Raises:
        DataError: no clip remains.
    """

    def __init__(self, data: Path, prepared: Path, split: Split = "train", exclude: str = "") -> None:
        entries = read_index(data)
        motion, _ = checkpoint.load(prepared / "motion.safetensors", framework="numpy")
        offsets = json.loads((prepared / "offsets.json").read_text())["clips"]
        morphable = MorphableModel.load()
        self.clips: list[MotionClip] = []
        for entry in entries:
            name = f"{entry.source}/{entry.clip}"
            if entry.split != split or entry.source == exclude or not offsets.get(name, {}).get("kept"):
                continue
            tensors, metadata = checkpoint.load(prepared / "features" / entry.path)
            landmarks, neutrals = Clip(data / entry.path).landmarks, motion[f"neutrals/{name}"]
            closed = closed_face(landmarks, motion[f"closed/{entry.source}/{entry.speaker}"])
            closed_neutral = morphable.neutral(closed).astype(np.float32)
            offset, silence = int(offsets[name]["frames"]), windows(tensors, "silence")
            self.clips.append(
                MotionClip(
                    entry, landmarks, neutrals, closed, closed_neutral, offset, *windows(tensors, "speech"), *silence
                )
            )
            if "voice" in tensors:
                tempo = float(metadata["tempo"])
                landmarks, neutrals = (frames_at_tempo(face, tempo, offset) for face in (landmarks, neutrals))
                voice = windows(tensors, "voice")
                self.clips.append(MotionClip(entry, landmarks, neutrals, closed, closed_neutral, offset, *voice))
        if not self.clips:
            raise DataError(f"{data} has no clips of the split {split!r} in step with their sound")
        self.no_speech = checkpoint.load(prepared / "features" / "no_speech.safetensors")[0]["silence"]
        self.identity = torch.from_numpy(motion["identity"])  # [K, 68, 3], one standard deviation each
        self.people: dict[tuple[str, str], list[int]] = {}
        for n, clip in enumerate(self.clips):
            self.people.setdefault((clip.entry.source, clip.entry.speaker), []).append(n)
        self.sources: dict[str, list[int]] = {}
        for n, clip in enumerate(self.clips):
            self.sources.setdefault(clip.entry.source, []).append(n)
        self.voices = torch.stack([clip.speech[:, -HEARD_FRAMES:].float().mean((0, 1)) for clip in self.clips])

    def set_statistics(self, atom: Atom) -> None:
        """Give the network what it needs to know of its data."""
        set_statistics(atom, self.clips)

    def _portrait(self, clip: MotionClip, rng: np.random.Generator) -> ReferenceFace:
        """Of any frame of a clip of the person's, mostly this one, or at rest."""
        if rng.random() < 0.2:
            same = self.people[clip.entry.source, clip.entry.speaker]
            clip = self.clips[same[rng.integers(len(same))]]
        if rng.random() < CLOSED_SHARE:
            return clip.closed, clip.closed_neutral
        chosen = rng.integers(len(clip.landmarks))
        return clip.landmarks[chosen], clip.neutrals[chosen]

    def draw_window(self, frames: int, lookahead: int, rng: np.random.Generator) -> MotionWindow:
        """One example; it depends on `rng` alone."""
        # Sources and people by the square root of their clips: a few clips must not weigh as much as five hundred.
        source = draw_by_size(self.sources, rng)
        person = draw_by_size({who: clips for who, clips in self.people.items() if who[0] == source}, rng)
        number = self.people[person][rng.integers(len(self.people[person]))]
        other = self.sources[source][rng.integers(len(self.sources[source]))]
        clip = self.clips[number]
        portrait = shown = self._portrait(clip, rng)
        if rng.random() < STRANGER_SHARE:
            shown = self._portrait(self.clips[other], rng)
        draw = rng.random()
        if draw < 0.06:
            audio = self.no_speech[rng.integers(len(self.no_speech))].float()
            shut = np.broadcast_to(clip.closed, (frames, 68, 3))
            return MotionWindow(audio, shut, np.ones(frames, np.float32), portrait, shown)
        silence = draw < 0.55 and len(clip.silence) > 0
        features, ends = (clip.silence, clip.silence_ends) if silence else (clip.speech, clip.speech_ends)
        chosen = rng.integers(len(ends))
        landmarks, known = at_audio(clip, int(ends[chosen]) - lookahead, frames, silence)
        audio = features[chosen].float()
        if rng.random() < VOICE_SHARE:
            audio = audio + rng.random() * (self.voices[other] - self.voices[number])
        return MotionWindow(audio, landmarks, known, portrait, shown)

    def batch(self, size: int, frames: int, lookahead: int, rng: np.random.Generator) -> Batch:
        """A random batch, half of it mirrored.

        The reference gets another identity and noise, and sometimes it is a stranger's: displacement must not depend
        on identity, nor may the network recognise a clip by its portrait.
        """
        parts = [self.draw_window(frames, lookahead, rng) for _ in range(size)]
        turned = rng.random(size) < 0.5

        def faces(found: list[Array]) -> Tensor:
            return torch.from_numpy(
                np.stack([mirrored(face) if turn else face for face, turn in zip(found, turned, strict=True)])
            )

        portrait, neutral = (faces([part.shown[k] for part in parts]) for k in range(2))
        weights = torch.from_numpy(rng.normal(0, IDENTITY_NOISE, (size, len(self.identity))).astype(np.float32))
        other = torch.einsum("bk,kpc->bpc", weights, self.identity)
        noise = torch.from_numpy(rng.normal(0, PORTRAIT_NOISE, portrait.shape).astype(np.float32))
        return Batch(
            torch.stack([part.audio for part in parts]),
            faces([part.landmarks for part in parts]),
            torch.from_numpy(np.stack([part.known for part in parts])),
            reference_of(portrait + other + noise, neutral + other),
            reference_of(*(faces([part.portrait[k] for part in parts]) for k in range(2))),
        )
