"""AToM-Net's training windows, made on the device that trains: drawn, augmented and encoded all at once.

All sound and landmarks stay in the device's memory. Each window is cut out of its clip's sound at its own place, to
the sample, so the offset from picture to sound need not be a whole number of frames, and each window has a voice, room
and noise of its own. Speech features are those of the window as serving would hear it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avatard.models.atom.model import reference_of
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import MESH_TO_68, MIRROR_68
from avatard.models.speech import WINDOW, WhisperFeatures, power_spectrum
from avatard.models.training.atom.audio_augmentation import (
    CLOSING_FRAMES,
    OPENING_FRAMES,
    SILENT_TAIL_FRAMES,
    no_speech,
)
from avatard.models.training.atom.bundle import Bundle
from avatard.models.training.atom.dataset import (
    IDENTITY_NOISE,
    PORTRAIT_NOISE,
    Batch,
    FacesOfClip,
    closed_face,
    closed_mouth,
)
from avatard.timebase import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME


@dataclass(frozen=True)
class Augmentation:
    """How windows differ from the clips that they are cut from; shares are of windows."""

    tempo: float = 0.5  # share played faster or slower, pitch and formants with it
    tempo_range: tuple[float, float] = (0.8, 1.25)
    formants: float = 0.5  # share whose spectrum is stretched
    formant_range: tuple[float, float] = (0.84, 1.19)
    filtered: float = 0.4  # share through a smooth random filter
    filter_db: float = 5.0
    telephone: float = 0.06  # share through a telephone's band
    room: float = 0.25  # share with an echo
    noisy: float = 0.4  # share with noise under the speech
    noise_db: tuple[float, float] = (0.0, 30.0)  # signal to noise
    gain_db: tuple[float, float] = (-15.0, 6.0)
    silence: float = 0.28  # share among silence, where the mouth is closed before and after the sound
    cold: float = 0.2  # share that begin with the clip, without a sound before
    no_speech: float = 0.06  # share of sound that is no speech
    stranger: float = 0.1  # share whose portrait is somebody else's of the same source
    closed: float = 0.3  # share whose portrait has a closed mouth
    elsewhere: float = 0.2  # share whose portrait is from another clip of the person


#: Windows as serving hears them.
PLAIN = Augmentation(
    tempo=0, formants=0, filtered=0, telephone=0, room=0, noisy=0, gain_db=(0, 0), silence=0, cold=1, no_speech=0,
    stranger=0, closed=0, elsewhere=0,
)  # fmt: skip


@dataclass(frozen=True)
class Places:
    """Where windows lie; times in frames of the clips' own pictures and sound."""

    clip: Tensor  # [B]
    last: Tensor  # [B] f32, the last landmark frame
    tempo: Tensor  # [B] f32
    lead: Tensor  # [B], the clip whose end is heard before this one begins; -1 for silence
    silent: Tensor  # [B] bool, among silence


@dataclass
class DeviceData:
    """The clips of one split on a device.

    Args:
        bundle: clips of all splits.
        split: whose.
        device: where.
        speech: the encoder, on that device.
        window_frames: its window.
        tracks: of sound that is no speech.
    """

    bundle: Bundle
    split: str
    device: torch.device
    speech: WhisperFeatures
    window_frames: int = 32
    tracks: int = 192
    faces: list[FacesOfClip] = field(init=False)

    def __post_init__(self) -> None:
        morphable = MorphableModel.load()
        starts = np.cumsum([0, *(clip.frames for clip in self.bundle.clips)])
        chosen = [n for n, clip in enumerate(self.bundle.clips) if clip.split == self.split]
        self.clips = [self.bundle.clips[n] for n in chosen]
        landmarks = [self.bundle.landmarks[starts[n] : starts[n + 1]] for n in chosen]
        audio = [self.bundle.audio[starts[n] * SAMPLES_PER_FRAME : starts[n + 1] * SAMPLES_PER_FRAME] for n in chosen]
        people = [f"{clip.source}/{clip.speaker}" for clip in self.clips]
        resting = {
            person: closed_mouth(np.concatenate([f for f, who in zip(landmarks, people, strict=True) if who == person]))
            for person in set(people)
        }
        # The neutral face is a linear map of the landmarks: found once, it takes a thousandth of the time.
        to_neutral = morphable.neutral(np.eye(204).reshape(-1, 68, 3)).reshape(204, 204).astype(np.float32)
        self.faces = []
        for face, person in zip(landmarks, people, strict=True):
            closed = closed_face(face, resting[person])
            neutrals = (np.concatenate([face, closed[None]]).reshape(-1, 204) @ to_neutral).reshape(-1, 68, 3)
            self.faces.append(FacesOfClip(face, neutrals[:-1], closed, neutrals[-1]))
        self.frames = self._on_device([clip.frames for clip in self.clips])
        self.offset = self._on_device(np.array([clip.offset for clip in self.clips], np.float32))
        self.start = torch.cumsum(self.frames, 0) - self.frames
        self.landmarks = self._on_device(np.concatenate(landmarks))
        self.neutrals = self._on_device(np.concatenate([face.neutrals for face in self.faces]))
        self.closed = self._on_device(np.stack([face.closed for face in self.faces]))
        self.closed_neutral = self._on_device(np.stack([face.closed_neutral for face in self.faces]))
        self.identity = self._on_device(morphable.identity[:, MESH_TO_68].astype(np.float32))
        self.audio = self._on_device(np.concatenate(audio))
        self.person, self.person_clips, self.person_size = self._groups(people)
        self.source, self.source_clips, self.source_size = self._groups([clip.source for clip in self.clips])
        self.shares = self._on_device(self._shares(people))
        self.mirror = self._on_device(MIRROR_68)
        self.window = torch.hann_window(WINDOW, device=self.device)
        rng = np.random.default_rng(0)
        sounds = [no_speech(self.window_frames, rng).samples for _ in range(self.tracks)]
        self.sounds = self._on_device(np.stack(sounds).astype(np.float32))

    def _on_device(self, values: NDArray[np.generic] | list[int]) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values)).to(self.device)

    def _groups(self, names: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """The group of each clip, the clips of each group `[G, most]` and their number `[G]`."""
        found = {name: [n for n, other in enumerate(names) if other == name] for name in sorted(set(names))}
        most = max(map(len, found.values()))
        table = np.stack([np.resize(members, most) for members in found.values()])
        order = {name: n for n, name in enumerate(found)}
        sizes = [len(members) for members in found.values()]
        return self._on_device([order[name] for name in names]), self._on_device(table), self._on_device(sizes)

    def _shares(self, people: list[str]) -> NDArray[np.float32]:
        """How often each clip is drawn.

        Sources by the square root of their length, more if they have many people; people of a source by the square root
        of theirs: a few clips must not weigh as much as five hundred, nor as little as they are.
        """
        frames = np.array([clip.frames for clip in self.clips], np.float64)
        share = frames.copy()
        names, sources = np.array(people), np.array([clip.source for clip in self.clips])
        for person in set(people):
            share[names == person] /= np.sqrt(frames[names == person].sum())
        for source in set(sources):
            here = sources == source
            weight = np.sqrt(frames[here].sum()) * len(set(names[here])) ** 0.25
            share[here] *= weight / share[here].sum()
        shares: NDArray[np.float32] = (share / share.sum()).astype(np.float32)
        return shares

    def places(self, size: int, frames: int, lookahead: int, how: Augmentation, rng: torch.Generator) -> Places:
        """Random windows of `frames` landmark frames and sound that ends `lookahead` frames later."""
        uniform = Uniform(size, rng)
        clip = torch.multinomial(self.shares, size, replacement=True, generator=rng)
        tempo = torch.where(uniform.below(how.tempo), uniform.between(*how.tempo_range), 1.0)
        draw = uniform.between(0, 1)
        silent, cold = draw < how.silence, draw > 1 - how.cold
        person = self.person[clip]
        lead = self.person_clips[person, (uniform.between(0, 1) * self.person_size[person]).long()]
        lead = torch.where(silent | cold | (lead == clip), -1, lead)
        # The sound ends with the window: at most where the clip does, or in the silence after it.
        ahead = self.offset[clip] + 0.5 + (0.5 + lookahead) * tempo  # from the last landmark frame to the window's end
        end = self.frames[clip] + torch.where(silent, SILENT_TAIL_FRAMES, 0) - ahead
        begin = torch.where(silent, 2 - ahead, torch.maximum(3.0 - ahead.new_zeros(()), 2 - self.offset[clip]))
        last = begin + uniform.between(0, 1) * (end - begin + torch.where(tempo == 1, 1.0, 0.0)).clamp(min=0)
        last = torch.where(tempo == 1, last.floor().minimum(end.floor()), last)  # no interpolation: it would smooth
        return Places(clip, last, tempo, lead, silent)

    def motion(self, at: Places, frames: int) -> tuple[Tensor, Tensor]:
        """Landmarks `[B, frames, 68, 3]` and whether they are known `[B, frames]`.

        Among silence the mouth is closed before and after the sound; it opens and closes in a raised cosine.
        """
        steps = torch.arange(frames - 1, -1, -1, device=self.device)
        when = at.last[:, None] - steps * at.tempo[:, None]  # [B, frames], in frames of the picture
        length, offset = self.frames[at.clip][:, None], self.offset[at.clip][:, None]
        known = (when >= -1e-3) & (when <= length - 1 + 1e-3)
        # Where the picture runs beyond the sound it shows speech without its sound: hold the edge frame instead.
        first, final = (-offset).clamp(min=0), length - 1 - offset.clamp(min=0)
        held = torch.minimum(torch.maximum(when, first), final)
        face = self._between(at, torch.where(at.silent[:, None], held, when))
        before, after = -(when + offset), when + offset - (length - 1)
        away = torch.where(before > 0, before / OPENING_FRAMES, after.clamp(min=0) / CLOSING_FRAMES)
        away = away / at.tempo[:, None] * at.silent[:, None]
        share = ((1 - torch.cos(math.pi * away.clamp(0, 1))) / 2)[..., None, None]
        quiet = ((before > 0) | (after > 0)) & at.silent[:, None]
        return face * (1 - share) + self.closed[at.clip][:, None] * share, (known | quiet).float()

    def _between(self, at: Places, when: Tensor) -> Tensor:
        """Landmarks at times `[B, S]` by Catmull-Rom's splines; a whole frame is itself."""
        low = when.floor()
        x = (when - low)[..., None, None]
        weights = (
            ((-0.5 * x + 1) * x - 0.5) * x,
            (1.5 * x - 2.5) * x * x + 1,
            ((-1.5 * x + 2) * x + 0.5) * x,
            (0.5 * x - 0.5) * x * x,
        )
        start, length = self.start[at.clip][:, None], self.frames[at.clip][:, None]
        found = torch.zeros((), device=self.device)
        for tap, weight in enumerate(weights):
            index = (low.long() + tap - 1).clamp(min=0).minimum(length - 1)
            found = found + weight * self.landmarks[start + index]
        return found

    def sound(self, at: Places, lookahead: int) -> Tensor:
        """What is heard, `[B, window_frames * 640]`, before any change but that of tempo."""
        size = self.window_frames * SAMPLES_PER_FRAME
        end = (at.last + self.offset[at.clip] + 0.5 + (0.5 + lookahead) * at.tempo) * SAMPLES_PER_FRAME
        end = end.round()
        # Relative to the first sample that is read, so that float32 is exact enough.
        span = torch.ceil(size * at.tempo)
        first = (end - span).long() - 1
        places = (span - size * at.tempo + 1)[:, None] + torch.arange(size, device=self.device) * at.tempo[:, None]
        raw = self._raw(at, first, int(size * 1.25) + 8)
        low = places.floor()
        x, index = places - low, low.long()
        a, b, c, d = (raw.gather(1, (index + tap).clamp(0, raw.shape[1] - 1)) for tap in (-1, 0, 1, 2))
        return b + 0.5 * x * (c - a + x * (2 * a - 5 * b + 4 * c - d + x * (3 * (b - c) + d - a)))

    def _raw(self, at: Places, first: Tensor, length: int) -> Tensor:
        """Samples `[B, length]` from sample `first` `[B]` of the clips on, with what is heard before and after them."""
        place = first[:, None] + torch.arange(length, device=self.device)
        own = self.frames[at.clip][:, None] * SAMPLES_PER_FRAME
        lead = at.lead.clamp(min=0)
        lead_length = self.frames[lead][:, None] * SAMPLES_PER_FRAME
        inside = (place >= 0) & (place < own)
        earlier = (place < 0) & (place >= -lead_length) & (at.lead >= 0)[:, None]
        index = torch.where(
            inside, self.start[at.clip][:, None] * SAMPLES_PER_FRAME + place,
            torch.where(earlier, self.start[lead][:, None] * SAMPLES_PER_FRAME + lead_length + place, 0),
        )  # fmt: skip
        fade = torch.where(place < 0, (-place / 80).clamp(max=1), 1.0)  # 5 ms: hides the cut
        return self.audio[index].float() / 32768 * fade * (inside | earlier)

    def heard(self, sound: Tensor, at: Places, how: Augmentation, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features `[B, window_frames, dim]` of sound in other rooms, through other microphones, in other voices.

        In a share of windows, those of the second result `[B]`, sound that is no speech takes its place.
        """
        uniform = Uniform(len(sound), rng)
        level = sound.square().mean(1, keepdim=True).sqrt() + 1e-4
        if how.room:
            wet = uniform.below(how.room)[:, None] * uniform.between(0.2, 1.0)[:, None]
            sound = sound + wet * reverberation(sound, uniform.between(0.05, 0.35), rng)
        if how.noisy or how.silence:
            noise = coloured_noise(sound, uniform.between(0, 1), rng)
            ratio = 10 ** (-uniform.between(*how.noise_db) / 20)[:, None]
            under = level * ratio * uniform.below(how.noisy)[:, None]
            floor = 10 ** (uniform.between(-90, -50) / 20)[:, None] * (at.silent & uniform.below(0.7))[:, None]
            sound = sound + noise * torch.maximum(under, floor)
        sound = sound * 10 ** (uniform.between(*how.gain_db) / 20)[:, None]
        nothing = uniform.below(how.no_speech)
        chosen = (uniform.between(0, 1) * len(self.sounds)).long()
        sound = torch.where(nothing[:, None], self.sounds[chosen], sound).clamp(-1, 1)
        spectrum = power_spectrum(sound, self.window)
        if how.formants:
            factor = torch.where(uniform.below(how.formants), uniform.between(*how.formant_range), 1.0)
            spectrum = stretched(spectrum, factor)
        if how.filtered or how.telephone:
            spectrum = spectrum * microphone(len(sound), how, uniform, rng)[..., None]
        return self.speech.encode(spectrum).float(), nothing

    @torch.no_grad()
    def batch(self, size: int, frames: int, lookahead: int, how: Augmentation, rng: torch.Generator) -> Batch:
        """A random batch, half of it mirrored, as `MotionData.batch`."""
        at = self.places(size, frames, lookahead, how, rng)
        target, known = self.motion(at, frames)
        audio, nothing = self.heard(self.sound(at, lookahead), at, how, rng)
        shut = nothing[:, None]
        target = torch.where(shut[..., None, None], self.closed[at.clip][:, None], target)
        known = torch.where(shut, 1.0, known)
        uniform = Uniform(size, rng)
        portrait = self._portrait(at.clip, how, uniform)
        source = self.source[at.clip]
        other = self.source_clips[source, (uniform.between(0, 1) * self.source_size[source]).long()]
        stranger = uniform.below(how.stranger)[:, None, None]
        shown = [torch.where(stranger, a, b) for a, b in
                 zip(self._portrait(other, how, uniform), portrait, strict=True)]  # fmt: skip
        turned = uniform.below(0.5)[:, None, None]
        (face, neutral), (shown_face, shown_neutral) = (
            [self._mirrored(part, turned) for part in pair] for pair in (portrait, shown)
        )
        target = self._mirrored(target, turned[..., None])
        weights = IDENTITY_NOISE * torch.randn(size, len(self.identity), generator=rng, device=self.device)
        someone = torch.einsum("bk,kpc->bpc", weights, self.identity)
        noise = PORTRAIT_NOISE * torch.randn(face.shape, generator=rng, device=self.device)
        reference = reference_of(shown_face + someone + noise, shown_neutral + someone)
        return Batch(audio, target, known, reference, reference_of(face, neutral))

    def _portrait(self, clip: Tensor, how: Augmentation, uniform: Uniform) -> tuple[Tensor, Tensor]:
        """Landmarks and neutral faces `[B, 68, 3]` of any frame of the person's clips, mostly this one, or at rest."""
        person = self.person[clip]
        another = self.person_clips[person, (uniform.between(0, 1) * self.person_size[person]).long()]
        clip = torch.where(uniform.below(how.elsewhere), another, clip)
        frame = self.start[clip] + (uniform.between(0, 1) * self.frames[clip]).long()
        shut = uniform.below(how.closed)[:, None, None]
        return (
            torch.where(shut, self.closed[clip], self.landmarks[frame]),
            torch.where(shut, self.closed_neutral[clip], self.neutrals[frame]),
        )

    def _mirrored(self, face: Tensor, turned: Tensor) -> Tensor:
        """Landmarks of the face in a mirror where `turned`."""
        flipped = face[..., self.mirror, :] * face.new_tensor([-1.0, 1.0, 1.0])
        return torch.where(turned, flipped, face)


class Uniform:
    """Random numbers of a batch."""

    def __init__(self, size: int, rng: torch.Generator) -> None:
        self.size, self.rng = size, rng

    def between(self, low: float, high: float) -> Tensor:
        """`[B]`, uniform."""
        return low + (high - low) * torch.rand(self.size, generator=self.rng, device=self.rng.device)

    def below(self, share: float) -> Tensor:
        """`[B]`, true in a share of cases."""
        return self.between(0, 1) < share


def coloured_noise(like: Tensor, slope: Tensor, rng: torch.Generator) -> Tensor:
    """Unit-variance noise `[B, T]`, white to brown: amplitudes fall with frequency to the power of `slope` `[B]`."""
    spectrum = torch.fft.rfft(torch.randn(like.shape, generator=rng, device=like.device))
    frequency = torch.arange(spectrum.shape[1], device=like.device, dtype=torch.float32).clamp(min=1)
    wave = torch.fft.irfft(spectrum * frequency ** -slope[:, None], like.shape[1])
    noise: Tensor = wave / (wave.std(1, keepdim=True) + 1e-9)
    return noise


def reverberation(sound: Tensor, seconds: Tensor, rng: torch.Generator) -> Tensor:
    """What a room adds to `sound` `[B, T]`: as loud as the sound at most, 60 dB less after `seconds` `[B]`."""
    length = SAMPLE_RATE_HZ // 3
    time = torch.arange(length, device=sound.device) / SAMPLE_RATE_HZ
    decay = torch.exp(-6.9 * time / seconds[:, None]) * (time > 0.003)
    response = decay * torch.randn(len(sound), length, generator=rng, device=sound.device)
    response = response / (response.square().sum(1, keepdim=True).sqrt() + 1e-9)
    size = 1 << (sound.shape[1] + length - 1).bit_length()
    spectrum = torch.fft.rfft(sound, size) * torch.fft.rfft(response, size)
    echo: Tensor = torch.fft.irfft(spectrum, size)[:, : sound.shape[1]]
    return echo


def stretched(spectrum: Tensor, factor: Tensor) -> Tensor:
    """Power spectra `[B, F, N]` whose frequencies are `factor` `[B]` times as high: longer and shorter vocal tracts."""
    bins = spectrum.shape[1]
    at = (torch.arange(bins, device=spectrum.device) / factor[:, None]).clamp(max=bins - 1.001)  # [B, F]
    low = at.floor()
    share = (at - low)[..., None]
    index = low.long()[..., None].expand(-1, -1, spectrum.shape[2])
    return spectrum.gather(1, index) * (1 - share) + spectrum.gather(1, index + 1) * share


def microphone(size: int, how: Augmentation, uniform: Uniform, rng: torch.Generator) -> Tensor:
    """Power responses `[B, F]`: smooth filters of a few waves along frequency, and telephones."""
    frequency = torch.linspace(0, 1, WINDOW // 2 + 1, device=rng.device)
    order = torch.arange(1, 5, device=rng.device)
    waves = torch.cos(math.pi * order[:, None] * frequency.sqrt())  # [4, F]
    decibels = how.filter_db * torch.randn(size, 4, generator=rng, device=rng.device) / order.sqrt() @ waves
    response = torch.where(uniform.below(how.filtered)[:, None], 10 ** (decibels / 10), 1.0)
    hertz = frequency * SAMPLE_RATE_HZ / 2
    band = torch.where((hertz > 300) & (hertz < 3400), 1.0, 1e-5)
    return torch.where(uniform.below(how.telephone)[:, None], response * band, response)
