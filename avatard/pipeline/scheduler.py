"""What is said when: samples in at any chunking, work orders and play-out out, by absolute frame number.

Sans-I/O: no await, no clock, no socket. The caller passes `now`, the play position in frames (a float: 25 per second),
and moves what comes back. Frame n carries samples [640 n, 640 (n + 1)); both leave together, so lip sync cannot drift.

The timeline is written ahead of the play position by `Timing.delay_frames`, which is the latency of live speech. Where
no speech is at hand in time, silence is written, just enough for the next hop: the head goes on living.

An *epoch* is one unbroken run of the motion and video streams. Interrupting, swapping the portrait, a dead worker and
falling hopelessly behind are the same thing here: a new epoch that starts at the next frame to be played.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from avatard.audio.ring import AudioRing, Samples
from avatard.clock import SAMPLES_PER_FRAME
from avatard.pipeline.interfaces import Picture

DECLICK_SAMPLES = 160  # 10 ms: an interrupt ramps the sound down instead of cutting it
MAX_COMPUTE_FRAMES = 25
HISTORY_FRAMES = 50  # sound kept behind the play position, for a restart
QUIET_LEVEL = 0.02  # of full scale: a microphone in a quiet room
REST_FRAMES = 10  # of quiet, then the mouth is closed
RESUME_FRAMES = 25  # speech that goes on this soon after an underrun came too late: it gets a larger margin
MAX_SLACK_SAMPLES = 8_000


@dataclass(frozen=True, slots=True)
class Timing:
    """How far ahead of the play position things must happen."""

    hop_frames: int  # new frames per clip
    fade_frames: int  # frames held back to be blended with the next clip
    lookahead_samples: int  # speech the motion network hears beyond the frames it makes
    compute_frames: float  # from the last sample of a hop to its frames, in play-out frames
    tick_frames: float = 0.25  # `Scheduler.advance` is called at least this often
    margin_samples: int = 640  # tick plus packet length plus jitter of live audio that is absorbed without a gap
    ahead_frames: int = 50  # speech that arrives early is written at most this far ahead
    buffer_samples: int = 30 * 16_000  # speech accepted beyond that; then the sender must wait

    @property
    def delay_frames(self) -> float:
        """Latency of live speech, in frames: hop + fade + look-ahead + compute."""
        lookahead = self.lookahead_samples / SAMPLES_PER_FRAME
        return self.hop_frames + self.fade_frames + lookahead + self.compute_frames


@dataclass(frozen=True, slots=True)
class Order:
    """Samples for the motion stream of `epoch`; they follow the previous order's without a gap."""

    epoch: int
    first: int  # absolute number of samples[0]
    samples: Samples  # float32 [T]


@dataclass(frozen=True, slots=True)
class PlayOut:
    """What leaves at frame `index`: its picture and its sound."""

    index: int
    samples: Samples  # float32 [640]
    picture: Picture | None  # None before the first one was generated
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
    underruns: int = 0
    refused_samples: int = 0


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Pushed samples that are not on the timeline yet."""

    samples: Samples
    arrived: float  # play position when it was pushed
    last: bool = False  # ends its utterance


@dataclass(frozen=True, slots=True)
class _Run:
    """A run of pushed samples on the timeline."""

    first: int
    end: int
    arrived: float
    offset: int  # samples of the same utterance before this run


class Scheduler:
    """Places speech on the timeline, hands out work, and pairs pictures with sound."""

    def __init__(self, timing: Timing, first_frame: int = 0) -> None:
        self.timing = timing
        self.counters = Counters()
        self.epoch = 0
        self._epoch_first = first_frame
        longest = replace(timing, compute_frames=max(MAX_COMPUTE_FRAMES, timing.compute_frames))
        kept = HISTORY_FRAMES + timing.ahead_frames + math.ceil(longest.delay_frames) + 2 * timing.hop_frames
        self._timeline = AudioRing(kept * SAMPLES_PER_FRAME, first_frame * SAMPLES_PER_FRAME)
        self._pending: deque[_Chunk] = deque()
        self._pending_samples = 0
        self._streaming = False  # speech is written without a gap
        self._offset = 0  # samples of the current utterance that are on the timeline
        self._slack = 0  # margin added for a sender whose packets are longer or later than `Timing.margin_samples`
        self._underrun_at = -math.inf
        self._speech: deque[_Run] = deque()
        self._ordered = self._timeline.end
        self._pictures: dict[int, Picture] = {}
        self._stale: dict[int, Picture] = {}  # of epochs before, shown until the new one has pictures
        self._fade_from: int | None = None  # frame at which the new epoch starts to be blended in
        self._last: Picture | None = None
        self._rest: Picture | None = None  # of this person, with a mouth that has been quiet for a while
        self._quiet = 0  # frames since the last speech
        self._bridge_from: int | None = None  # after an interrupt `_rest` is shown until the new epoch has pictures
        self._newest = first_frame - 1  # of the epoch's pictures
        self._resting = True  # nobody watched, so the first pictures cannot be there yet
        self._next = first_frame

    @property
    def buffered_samples(self) -> int:
        """Speech that was accepted and is not on the timeline yet."""
        return self._pending_samples

    @property
    def has_speech(self) -> bool:
        """Whether there is speech that was not played yet."""
        next_sample = self._next * SAMPLES_PER_FRAME
        return self._pending_samples > 0 or any(run.end > next_sample for run in self._speech)

    def backlog_frames(self, now: float) -> float:
        """How much later than the stated latency a sample pushed now will be played, in frames."""
        waiting = self._timeline.end + self._pending_samples
        return waiting / SAMPLES_PER_FRAME - now - self.timing.delay_frames

    @property
    def epoch_first(self) -> int:
        """The first frame of the current epoch."""
        return self._epoch_first

    @property
    def settled(self) -> bool:
        """Whether a cross-fade is over: into the current epoch, or after an interrupt into a closed mouth."""
        began = self._bridge_from if self._bridge_from is not None else self._fade_from
        return began is not None and self._next - began > self.timing.fade_frames

    @property
    def ahead_frames(self) -> int:
        """Pictures that wait for their frame."""
        return sum(index >= self._next for index in self._pictures)

    @property
    def next_frame(self) -> int:
        """The frame that `play` gives next."""
        return self._next

    # -- sound in -----------------------------------------------------------------------------------------------------

    def push(self, samples: Samples, now: float) -> int:
        """Take speech (float32 [T], 16 kHz); returns how many samples were accepted, the first ones.

        Fewer than given means that `Timing.buffer_samples` are waiting: push the rest later, or drop it.
        """
        accepted = min(len(samples), self.timing.buffer_samples - self._pending_samples)
        if accepted > 0:
            self._pending.append(_Chunk(np.asarray(samples[:accepted], np.float32), now))
            self._pending_samples += accepted
        self.counters.refused_samples += len(samples) - accepted
        return accepted

    def end_of_utterance(self, now: float) -> None:
        """Say that the speech pushed so far is complete: the next speech starts a new utterance."""
        self._pending.append(_Chunk(np.zeros(0, np.float32), now, last=True))
        self._place(now)

    def advance(self, now: float) -> list[Order]:
        """Write the timeline as far as `now` demands, and hand out what the motion stream has not had yet."""
        self._place(now)
        needed = self._needed(now)
        if needed > self._timeline.end:
            if self._streaming:
                self._streaming = False
                self._underrun_at = now
                self.counters.underruns += 1
            self._pad(needed)
        if self._timeline.end == self._ordered:
            return []
        order = Order(self.epoch, self._ordered, self._timeline.read(self._ordered, self._timeline.end - self._ordered))
        self._ordered = self._timeline.end
        return [order]

    def _place(self, now: float) -> None:
        """Move waiting speech to the timeline, not further ahead than `Timing.ahead_frames`."""
        delay = self.timing.delay_frames
        limit = round((now + delay + self.timing.ahead_frames) * SAMPLES_PER_FRAME)
        while self._pending and self._timeline.end < limit:
            chunk = self._pending.popleft()
            if not self._streaming and len(chunk.samples):
                # Live audio arrives at the pace it is played: from here on it stays ahead of `_needed` by the margin.
                # Speech that is already waiting needs that much less of a run-up.
                if now - self._underrun_at < RESUME_FRAMES:
                    self._slack = min(self._slack + len(chunk.samples), MAX_SLACK_SAMPLES)
                cursor = round((now + delay) * SAMPLES_PER_FRAME) + self.timing.margin_samples + self._slack
                self._pad(max(cursor - self._pending_samples, self._next * SAMPLES_PER_FRAME))
                self._streaming = True
            first = self._timeline.end
            taken = max(0, min(len(chunk.samples), limit - first))
            if taken:
                self._timeline.append(chunk.samples[:taken])
                self._pending_samples -= taken
                self._speech.append(_Run(first, first + taken, chunk.arrived, self._offset))
                self._offset += taken
            if taken < len(chunk.samples):
                self._pending.appendleft(replace(chunk, samples=chunk.samples[taken:]))
            elif chunk.last:
                self._end_utterance()

    def _end_utterance(self) -> None:
        self._streaming = False
        self._offset = self._slack = 0
        self._underrun_at = -math.inf

    def _needed(self, now: float) -> int:
        """Samples the timeline must have: those of each frame that the next call would be too late to order."""
        timing = self.timing
        end = max(math.ceil(now + timing.tick_frames + timing.compute_frames), self._epoch_first + 1)
        hops = math.ceil((end + timing.fade_frames - self._epoch_first) / timing.hop_frames)
        return (self._epoch_first + hops * timing.hop_frames) * SAMPLES_PER_FRAME + timing.lookahead_samples

    def _pad(self, end: int) -> None:
        if end > self._timeline.end:
            self._timeline.append(np.zeros(end - self._timeline.end, np.float32))

    def retime(self, compute_frames: float) -> None:
        """Give generation another time, at most `MAX_COMPUTE_FRAMES`; speech that is being said keeps its place."""
        self.timing = replace(self.timing, compute_frames=min(compute_frames, MAX_COMPUTE_FRAMES))

    # -- epochs -------------------------------------------------------------------------------------------------------

    def restart(self, now: float) -> int:
        """Begin a new epoch, with the same sound, at the first frame that can be made in time; gives that frame.

        Pictures that are already there are shown until then, and blended into the new ones.
        """
        first = self._after(now) + round(self.timing.compute_frames)
        self._pad(first * SAMPLES_PER_FRAME)
        self._stale = {**self._stale, **self._pictures}
        self._pictures = {}
        self._fade_from = self._bridge_from = None
        self.epoch += 1
        self._epoch_first = first
        self._newest = first - 1
        self._ordered = first * SAMPLES_PER_FRAME
        return first

    def forget_face(self) -> None:
        """Another person is shown from the next epoch on."""
        self._rest = None

    def resume(self, now: float) -> int:
        """Begin a new epoch after a pause in which nothing was played: its first pictures will be late by nature."""
        self._stale, self._pictures, self._resting = {}, {}, True
        return self.restart(now)

    def _after(self, now: float) -> int:
        """The first frame that nobody has seen yet."""
        return max(self._next, math.floor(now) + 1)

    def interrupt(self, now: float) -> Interrupted:
        """Forget all speech that was not heard yet: the next frame is silent, and a new epoch begins soon after it."""
        first = self._after(now)
        cut = first * SAMPLES_PER_FRAME
        heard = [run for run in self._speech if run.first < cut]
        played = heard[-1].offset + min(heard[-1].end, cut) - heard[-1].first if heard else 0
        dropped = self._pending_samples + sum(max(0, run.end - max(run.first, cut)) for run in self._speech)
        ramp = self._timeline.read(cut, DECLICK_SAMPLES) * np.linspace(1, 0, DECLICK_SAMPLES, dtype=np.float32)
        self._pending.clear()
        self._pending_samples = 0
        self._end_utterance()
        self._speech = deque(replace(run, end=min(run.end, cut)) for run in heard)
        self._timeline.truncate(cut)
        self._pad(cut)
        self._timeline.append(ramp)
        self.restart(now)
        # A clip takes longer than a mouth may go on moving without a sound.
        self._bridge_from = first if self._rest is not None else None
        return Interrupted(first, played, dropped)

    def catch_up(self, now: float) -> bool:
        """Give up frames that can no longer be shown in time when generation is two hops behind; True if it did."""
        behind = self._next - 1 - self._newest
        if behind < 2 * self.timing.hop_frames + math.ceil(self.timing.compute_frames):
            return False
        # A gap in the pictures, but then they are in step with the sound.
        self.counters.skipped += -self._newest + self.restart(now) - 1
        return True

    # -- pictures -----------------------------------------------------------------------------------------------------

    def add(self, epoch: int, first: int, pictures: Sequence[Picture]) -> None:
        """Take generated pictures for frames [first, first + len); those of another epoch or too late are dropped."""
        if epoch != self.epoch:
            return
        self.counters.generated += len(pictures)
        self._newest = first + len(pictures) - 1
        for index, picture in enumerate(pictures, first):
            if index < self._next:
                self.counters.late += 1
            else:
                self._pictures[index] = picture

    def show(self, picture: Picture) -> None:
        """Give a picture to show until the first generated one is there."""
        self._last = picture

    def play(self, now: float) -> PlayOut:
        """The next frame; call it once for each frame, when it is due. `now` only measures how long speech waited."""
        index = self._next
        self._next += 1
        fresh = self._pictures.pop(index, None)
        stale = self._stale.pop(index, None)
        picture = self._blend(index, fresh, stale)
        repeated = picture is None
        self._last = picture if picture is not None else self._last
        self.counters.played += 1
        self.counters.repeated += repeated and not self._resting
        first = index * SAMPLES_PER_FRAME
        run = next((run for run in self._speech if run.first < first + SAMPLES_PER_FRAME and run.end > first), None)
        while self._speech and self._speech[0].end <= first - SAMPLES_PER_FRAME:
            self._speech.popleft()
        samples = self._timeline.read(first, SAMPLES_PER_FRAME)
        self._quiet = 0 if run is not None and np.abs(samples).max() > QUIET_LEVEL else self._quiet + 1
        if fresh is not None and self._quiet > REST_FRAMES:
            self._rest = fresh
        waited = now - run.arrived if run is not None else None
        return PlayOut(index, samples, self._last, repeated, run is not None, waited)

    def _blend(self, index: int, fresh: Picture | None, stale: Picture | None) -> Picture | None:
        """A new epoch or, after an interrupt, a closed mouth; cross-faded with what was there."""
        before = stale if stale is not None else self._last
        if fresh is not None:
            if self._fade_from is None:
                self._fade_from, self._resting = index, False
                if self._bridge_from is not None:
                    before = self._last
                self._bridge_from = None
            return self._mix(before, fresh, index - self._fade_from + 1)
        if self._bridge_from is not None and self._rest is not None:
            return self._mix(before, self._rest, index - self._bridge_from + 1)
        return stale if self._fade_from is None else None

    def _mix(self, before: Picture | None, after: Picture, step: int) -> Picture:
        """The `step`th picture of a cross-fade, by a raised cosine."""
        fade = self.timing.fade_frames
        if step > fade or before is None or before.pixels.shape != after.pixels.shape:
            self._stale.clear()
            return after
        weight = np.float32(0.5 - 0.5 * math.cos(math.pi * step / (fade + 1)))
        mixed = before.pixels * (1 - weight) + after.pixels * weight
        return replace(
            after,
            pixels=np.rint(mixed).astype(np.uint8),
            landmarks=before.landmarks * (1 - weight) + after.landmarks * weight,
            blendshapes=before.blendshapes * (1 - weight) + after.blendshapes * weight,
        )
