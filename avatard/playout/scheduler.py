"""Decides what is played when: samples in at any chunking, work for the networks and frames out, by frame number.

Sans-I/O: no await, no clock, no socket. The caller passes `now`, the play position in frames (a float: 25 per second),
and forwards what comes back. Frame n carries samples [640 n, 640 (n + 1)); both leave together, so lip sync cannot
drift. The sound is an `AudioTimeline`, written ahead of the play position; where no speech is at hand in time, silence
is written, just enough for the next hop: the head goes on living. The frames are a `FrameQueue`.

An *epoch* is one unbroken run of the motion and video streams. Interrupting, swapping the portrait, a dead worker and
falling hopelessly behind are the same thing here: a new epoch that starts at the next frame to be played.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from avatard.frame import Frame, Samples, Sound
from avatard.playout.audio_timeline import MAX_COMPUTE_FRAMES, AudioTimeline, Timing
from avatard.playout.frame_queue import FrameQueue
from avatard.playout.utterance import Span, Utterance, UtteranceChange
from avatard.timebase import SAMPLES_PER_FRAME

QUIET_LEVEL = 0.02  # of full scale: a microphone in a quiet room


@dataclass(frozen=True, slots=True)
class StartEpoch:
    """The motion and video streams begin anew at this frame."""

    epoch: int
    first_frame: int


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """Samples for the motion stream of `epoch`; they follow the previous chunk's without a gap."""

    epoch: int
    first: int  # absolute number of samples[0]
    samples: Samples  # float32 [T]


@dataclass(frozen=True, slots=True)
class PlayoutFrame:
    """What leaves at frame `index`: its picture and its sound."""

    index: int
    sound: Sound  # 40 ms
    picture: Frame | None  # None before the first one was generated
    repeated: bool  # the picture was shown before: the right one was not there in time
    speech: bool  # some of the samples were pushed, not padded
    waited_frames: float | None  # from the arrival of the frame's first speech sample to now
    live: bool = False  # a microphone heard that speech: its utterance has no id
    changes: tuple[UtteranceChange, ...] = ()  # utterances whose first or last sample is in it, in order
    spans: tuple[Span, ...] = ()  # which of the samples are whose

    @property
    def samples(self) -> Samples:
        """What the networks heard, float32 [640]."""
        return self.sound.speech


@dataclass(frozen=True, slots=True)
class Interrupted:
    """What an interrupt cut off."""

    frame: int  # first frame that is silent
    ended: tuple[Utterance, ...]  # utterances that end with it, in order


@dataclass(slots=True)
class Counters:
    """Totals since the start."""

    generated: int = 0
    played: int = 0
    repeated: int = 0
    late: int = 0  # arrived after their frame was due
    skipped: int = 0  # given up by a decision to catch up
    refused_samples: int = 0


class Scheduler:
    """Places speech on the timeline, hands out work, and pairs frames with sound.

    After any call that may begin an epoch or accept samples, `poll` has what the caller must forward to the networks.
    """

    def __init__(self, timing: Timing, first_frame: int = 0) -> None:
        self.counters = Counters()
        self.epoch = 0
        self._epoch_first = first_frame
        self._announced = False  # whether the current epoch was handed out
        self._timeline = AudioTimeline(timing, first_frame)
        self._frames = FrameQueue(first_frame, timing.fade_frames)
        self._polled = self._timeline.end  # samples before it were handed out
        self._next = first_frame

    @property
    def timing(self) -> Timing:
        """How far ahead things happen now."""
        return self._timeline.timing

    @property
    def buffered_samples(self) -> int:
        """Speech that was accepted and is not on the timeline yet."""
        return self._timeline.waiting_samples

    @property
    def underruns(self) -> int:
        """Times that speech came too late, and silence was played."""
        return self._timeline.underruns

    @property
    def has_speech(self) -> bool:
        """Whether there is speech that was not played yet, or an utterance that has not ended."""
        return self._timeline.has_speech()

    def backlog_frames(self, now: float) -> float:
        """How much later than intended a sample pushed now will be played, in frames."""
        return self._timeline.backlog_frames(now)

    @property
    def settled(self) -> bool:
        """Whether a cross-fade is over: into the current epoch, or after an interrupt into a closed mouth."""
        return self._frames.settled(self._next)

    @property
    def ahead_frames(self) -> int:
        """Frames that wait to be due."""
        return self._frames.ahead(self._next)

    @property
    def next_frame(self) -> int:
        """The frame that `play` gives next."""
        return self._next

    def push(self, sound: Sound, now: float, utterance: Utterance) -> int:
        """Take speech; return how many samples were accepted, the first ones.

        Fewer than given means that `Timing.buffer_samples` are waiting: push the rest later, or drop it.
        """
        accepted = self._timeline.push(sound, now, utterance)
        self.counters.refused_samples += len(sound) - accepted
        return accepted

    def end_of_utterance(self, now: float, utterance: Utterance) -> None:
        """End the utterance: the speech pushed so far is complete."""
        self._timeline.finish(now, utterance)
        self._timeline.place(now, self._next)

    def poll(self, now: float) -> list[StartEpoch | AudioChunk]:
        """Write the timeline as far as `now` demands; return what the networks have not had yet."""
        timeline = self._timeline
        timeline.place(now, self._next)
        timeline.demand(self._needed(now), now)
        commands: list[StartEpoch | AudioChunk] = []
        if not self._announced:
            self._announced = True
            commands.append(StartEpoch(self.epoch, self._epoch_first))
        if timeline.end > self._polled:
            samples = timeline.read(self._polled, timeline.end - self._polled)
            commands.append(AudioChunk(self.epoch, self._polled, samples))
            self._polled = timeline.end
        return commands

    def _needed(self, now: float) -> int:
        """Samples the timeline must have: those of each frame that the next call would be too late to hand out."""
        timing = self.timing
        end = max(math.ceil(now + timing.tick_frames + timing.compute_frames), self._epoch_first + 1)
        hops = math.ceil((end + timing.fade_frames - self._epoch_first) / timing.hop_frames)
        return (self._epoch_first + hops * timing.hop_frames) * SAMPLES_PER_FRAME + timing.lookahead_samples

    def hop_of(self, frame: int) -> tuple[int, int, int]:
        """The hop of the current epoch that makes a frame.

        Returns:
            Its number in the epoch; the frame's position in it; and the sample, not included, at which all that it
            needs was heard.
        """
        timing = self.timing
        hop, offset = divmod(frame - self._epoch_first + timing.fade_frames, timing.hop_frames)
        heard = (self._epoch_first + (hop + 1) * timing.hop_frames) * SAMPLES_PER_FRAME + timing.lookahead_samples
        return hop, offset, heard

    def retime(self, compute_frames: float) -> None:
        """Give generation another time, at most `MAX_COMPUTE_FRAMES`; speech that is being said keeps its place."""
        self._timeline.timing = replace(self.timing, compute_frames=min(compute_frames, MAX_COMPUTE_FRAMES))

    def restart(self, now: float) -> int:
        """Begin a new epoch, with the same sound, at the first frame that can be made in time; return that frame.

        Frames that are already there are shown until then, and blended into the new ones.
        """
        first = self._after(now) + round(self.timing.compute_frames)
        self._timeline.pad(first * SAMPLES_PER_FRAME)
        self._frames.restart(first)
        self.epoch += 1
        self._announced = False
        self._epoch_first = first
        self._polled = first * SAMPLES_PER_FRAME
        return first

    def forget_face(self) -> None:
        """Another person is shown from the next epoch on."""
        self._frames.forget_face()

    def resume(self, now: float) -> int:
        """Begin a new epoch after a pause in which nothing was played: its first frames will be late by nature."""
        self._frames.pause()
        return self.restart(now)

    def _after(self, now: float) -> int:
        """The first frame that nobody has seen yet."""
        return max(self._next, math.floor(now) + 1)

    def interrupt(self, now: float) -> Interrupted:
        """Forget all speech that was not heard yet: the next frame is silent, and a new epoch begins soon after it."""
        first = self._after(now)
        ended = self._timeline.cut(first * SAMPLES_PER_FRAME)
        self.restart(now)
        self._frames.close_mouth(first)
        return Interrupted(first, tuple(ended))

    def catch_up(self, now: float) -> bool:
        """Give up frames and begin anew when for a hop, beyond the time it is given, no frame came in time.

        What comes late is not shown: frames that are made fast enough but stay late would never be seen.

        Returns:
            Whether it did.
        """
        if self._frames.missed < self.timing.hop_frames + math.ceil(self.timing.compute_frames):
            return False
        newest = self._frames.newest
        # A gap in the frames, but then they are in step with the sound.
        self.counters.skipped += self.restart(now) - newest - 1
        return True

    def add(self, epoch: int, first: int, frames: Sequence[Frame]) -> None:
        """Take generated frames [first, first + len); those of another epoch or too late are dropped."""
        if epoch != self.epoch:
            return
        self.counters.generated += len(frames)
        self._frames.newest = first + len(frames) - 1
        for index, frame in enumerate(frames, first):
            if index < self._next:
                self.counters.late += 1
            else:
                self._frames.add(index, frame)

    def show(self, frame: Frame) -> None:
        """Show a frame until the first generated one is there."""
        self._frames.show(frame)

    def play(self, now: float) -> PlayoutFrame:
        """Play the next frame; call it once for each, when it is due. `now` only measures how long speech waited."""
        index = self._next
        self._next += 1
        sound, run, changes, spans = self._timeline.play(index * SAMPLES_PER_FRAME, SAMPLES_PER_FRAME)
        quiet = run is None or bool(np.abs(sound.speech).max() <= QUIET_LEVEL)
        picture, repeated = self._frames.take(index, quiet)
        self.counters.played += 1
        self.counters.repeated += repeated
        waited = now - run.arrived if run is not None else None
        live = run is not None and run.utterance is not None and not run.utterance.id
        said = run is not None
        return PlayoutFrame(index, sound, picture, repeated, said, waited, live, tuple(changes), tuple(spans))
