"""What is said when: samples in at any chunking, work orders and play-out out, by absolute frame number.

Sans-I/O: no await, no clock, no socket. The caller passes `now`, the play position in frames (a float: 25 per second),
and moves what comes back. Frame n carries samples [640 n, 640 (n + 1)); both leave together, so lip sync cannot drift.
The sound is a `Timeline`, written ahead of the play position; where no speech is at hand in time, silence is written,
just enough for the next hop: the head goes on living. The pictures are a `FrameQueue`.

An *epoch* is one unbroken run of the motion and video streams. Interrupting, swapping the portrait, a dead worker and
falling hopelessly behind are the same thing here: a new epoch that starts at the next frame to be played.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from avatard.frame import Frame, Samples
from avatard.playout.audio_timeline import MAX_COMPUTE_FRAMES, Timeline, Timing
from avatard.playout.frame_queue import FrameQueue
from avatard.timebase import SAMPLES_PER_FRAME

QUIET_LEVEL = 0.02  # of full scale: a microphone in a quiet room


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """Samples for the motion stream of `epoch`; they follow the previous order's without a gap."""

    epoch: int
    first: int  # absolute number of samples[0]
    samples: Samples  # float32 [T]


@dataclass(frozen=True, slots=True)
class PlayoutFrame:
    """What leaves at frame `index`: its picture and its sound."""

    index: int
    samples: Samples  # float32 [640]
    picture: Frame | None  # None before the first one was generated
    repeated: bool  # the picture was shown before: the right one was not there in time
    speech: bool  # some of the samples were pushed, not padded
    waited_frames: float | None  # from the arrival of the frame's first speech sample to now


@dataclass(frozen=True, slots=True)
class Interrupted:
    """What an interrupt cut off."""

    frame: int  # first frame that is silent
    played_samples: int  # of the utterance that was being played
    dropped_samples: int  # pushed but never heard


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
    """Places speech on the timeline, hands out work, and pairs pictures with sound."""

    def __init__(self, timing: Timing, first_frame: int = 0) -> None:
        self.counters = Counters()
        self.epoch = 0
        self._epoch_first = first_frame
        self._timeline = Timeline(timing, first_frame)
        self._pictures = FrameQueue(first_frame, timing.fade_frames)
        self._ordered = self._timeline.end
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
        """Whether there is speech that was not played yet."""
        return self._timeline.has_speech(self._next * SAMPLES_PER_FRAME)

    def backlog_frames(self, now: float) -> float:
        """How much later than intended a sample pushed now will be played, in frames."""
        return self._timeline.backlog_frames(now)

    @property
    def epoch_first(self) -> int:
        """The first frame of the current epoch."""
        return self._epoch_first

    @property
    def settled(self) -> bool:
        """Whether a cross-fade is over: into the current epoch, or after an interrupt into a closed mouth."""
        return self._pictures.settled(self._next)

    @property
    def ahead_frames(self) -> int:
        """Pictures that wait for their frame."""
        return self._pictures.ahead(self._next)

    @property
    def next_frame(self) -> int:
        """The frame that `play` gives next."""
        return self._next

    # -- sound in -----------------------------------------------------------------------------------------------------

    def push(self, samples: Samples, now: float) -> int:
        """Take speech (float32 [T], 16 kHz); returns how many samples were accepted, the first ones.

        Fewer than given means that `Timing.buffer_samples` are waiting: push the rest later, or drop it.
        """
        accepted = self._timeline.push(samples, now)
        self.counters.refused_samples += len(samples) - accepted
        return accepted

    def end_of_utterance(self, now: float) -> None:
        """Say that the speech pushed so far is complete: the next speech starts a new utterance."""
        self._timeline.finish(now)
        self._timeline.place(now, self._next)

    def advance(self, now: float) -> list[AudioChunk]:
        """Write the timeline as far as `now` demands, and hand out what the motion stream has not had yet."""
        timeline = self._timeline
        timeline.place(now, self._next)
        timeline.demand(self._needed(now), now)
        if timeline.end == self._ordered:
            return []
        order = AudioChunk(self.epoch, self._ordered, timeline.read(self._ordered, timeline.end - self._ordered))
        self._ordered = timeline.end
        return [order]

    def _needed(self, now: float) -> int:
        """Samples the timeline must have: those of each frame that the next call would be too late to order."""
        timing = self.timing
        end = max(math.ceil(now + timing.tick_frames + timing.compute_frames), self._epoch_first + 1)
        hops = math.ceil((end + timing.fade_frames - self._epoch_first) / timing.hop_frames)
        return (self._epoch_first + hops * timing.hop_frames) * SAMPLES_PER_FRAME + timing.lookahead_samples

    def retime(self, compute_frames: float) -> None:
        """Give generation another time, at most `MAX_COMPUTE_FRAMES`; speech that is being said keeps its place."""
        self._timeline.timing = replace(self.timing, compute_frames=min(compute_frames, MAX_COMPUTE_FRAMES))

    # -- epochs -------------------------------------------------------------------------------------------------------

    def restart(self, now: float) -> int:
        """Begin a new epoch, with the same sound, at the first frame that can be made in time; gives that frame.

        Pictures that are already there are shown until then, and blended into the new ones.
        """
        first = self._after(now) + round(self.timing.compute_frames)
        self._timeline.pad(first * SAMPLES_PER_FRAME)
        self._pictures.restart(first)
        self.epoch += 1
        self._epoch_first = first
        self._ordered = first * SAMPLES_PER_FRAME
        return first

    def forget_face(self) -> None:
        """Another person is shown from the next epoch on."""
        self._pictures.forget_face()

    def resume(self, now: float) -> int:
        """Begin a new epoch after a pause in which nothing was played: its first pictures will be late by nature."""
        self._pictures.pause()
        return self.restart(now)

    def _after(self, now: float) -> int:
        """The first frame that nobody has seen yet."""
        return max(self._next, math.floor(now) + 1)

    def interrupt(self, now: float) -> Interrupted:
        """Forget all speech that was not heard yet: the next frame is silent, and a new epoch begins soon after it."""
        first = self._after(now)
        played, dropped = self._timeline.cut(first * SAMPLES_PER_FRAME)
        self.restart(now)
        self._pictures.close_mouth(first)
        return Interrupted(first, played, dropped)

    def catch_up(self, now: float) -> bool:
        """Give up frames and begin anew when for a hop, beyond the time it is given, no picture came in time.

        What comes late is not shown: pictures that are made fast enough but stay late would be no pictures at all.

        Returns:
            Whether it did.
        """
        if self._pictures.missed < self.timing.hop_frames + math.ceil(self.timing.compute_frames):
            return False
        newest = self._pictures.newest
        # A gap in the pictures, but then they are in step with the sound.
        self.counters.skipped += self.restart(now) - newest - 1
        return True

    # -- pictures -----------------------------------------------------------------------------------------------------

    def add(self, epoch: int, first: int, pictures: Sequence[Frame]) -> None:
        """Take generated pictures for frames [first, first + len); those of another epoch or too late are dropped."""
        if epoch != self.epoch:
            return
        self.counters.generated += len(pictures)
        self._pictures.newest = first + len(pictures) - 1
        for index, picture in enumerate(pictures, first):
            if index < self._next:
                self.counters.late += 1
            else:
                self._pictures.add(index, picture)

    def show(self, picture: Frame) -> None:
        """Give a picture to show until the first generated one is there."""
        self._pictures.show(picture)

    def play(self, now: float) -> PlayoutFrame:
        """The next frame; call it once for each frame, when it is due. `now` only measures how long speech waited."""
        index = self._next
        self._next += 1
        first = index * SAMPLES_PER_FRAME
        spoken = self._timeline.spoken(first, first + SAMPLES_PER_FRAME)
        samples = self._timeline.read(first, SAMPLES_PER_FRAME)
        quiet = spoken is None or bool(np.abs(samples).max() <= QUIET_LEVEL)
        picture, repeated = self._pictures.take(index, quiet)
        self.counters.played += 1
        self.counters.repeated += repeated
        waited = now - spoken.arrived if spoken is not None else None
        return PlayoutFrame(index, samples, picture, repeated, spoken is not None, waited)
