"""The sound of every frame: speech is placed ahead of the play position, silence where there is none in time.

Times are the play position `now` in frames (25 a second). The timeline is written ahead of it by
`Timing.delay_frames`, which is the latency of live speech.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from avatard.config import Stream
from avatard.frame import Samples
from avatard.playout.ring import AudioRing
from avatard.timebase import FPS, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME

MAX_COMPUTE_FRAMES = 25
DECLICK_SAMPLES = 160  # 10 ms: an interrupt ramps the sound down instead of cutting it
HISTORY_FRAMES = 50  # sound kept behind the play position, for a restart
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
    buffer_samples: int = 30 * SAMPLE_RATE_HZ  # speech accepted beyond that; then the sender must wait

    @classmethod
    def of(cls, stream: Stream, compute_frames: float, held_frames: int) -> Timing:
        """For a configuration and an engine that holds back `held_frames` beyond hop and fade."""
        return cls(
            hop_frames=stream.hop_frames,
            fade_frames=stream.fade_frames + held_frames,
            lookahead_samples=math.ceil(stream.lookahead_ms * FPS / 1000) * SAMPLES_PER_FRAME,
            compute_frames=compute_frames,
        )

    @property
    def delay_frames(self) -> float:
        """Latency of live speech, in frames: hop + fade + look-ahead + compute."""
        lookahead = self.lookahead_samples / SAMPLES_PER_FRAME
        return self.hop_frames + self.fade_frames + lookahead + self.compute_frames


@dataclass(frozen=True, slots=True)
class Spoken:
    """A run of pushed samples on the timeline."""

    first: int
    end: int
    arrived: float  # play position when it was pushed
    offset: int  # samples of the same utterance before this run


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Pushed samples that are not on the timeline yet."""

    samples: Samples
    arrived: float
    last: bool = False  # ends its utterance


class Timeline:
    """Sound by absolute sample number, and the speech that waits for its place there."""

    def __init__(self, timing: Timing, first_frame: int) -> None:
        self.timing = timing
        self.underruns = 0  # times that speech came too late, and silence was written
        longest = replace(timing, compute_frames=max(MAX_COMPUTE_FRAMES, timing.compute_frames))
        kept = HISTORY_FRAMES + timing.ahead_frames + math.ceil(longest.delay_frames) + 2 * timing.hop_frames
        self._ring = AudioRing(kept * SAMPLES_PER_FRAME, first_frame * SAMPLES_PER_FRAME)
        self._pending: deque[_Chunk] = deque()
        self._pending_samples = 0
        self._spoken: deque[Spoken] = deque()
        self._streaming = False  # speech is written without a gap
        self._offset = 0  # samples of the current utterance that are on the timeline
        self._slack = 0  # margin added for a sender whose packets are longer or later than `Timing.margin_samples`
        self._underrun_at = -math.inf

    @property
    def end(self) -> int:
        """The first sample that is not written yet."""
        return self._ring.end

    @property
    def waiting_samples(self) -> int:
        """Speech that was accepted and is not placed yet."""
        return self._pending_samples

    def has_speech(self, first: int) -> bool:
        """Whether there is speech from sample `first` on."""
        return self._pending_samples > 0 or any(run.end > first for run in self._spoken)

    def backlog_frames(self, now: float) -> float:
        """How much later than intended a sample pushed now will be played, in frames."""
        intended = self.timing.margin_samples + self._slack
        waiting = self.end + self._pending_samples - intended
        return waiting / SAMPLES_PER_FRAME - now - self.timing.delay_frames

    def push(self, samples: Samples, now: float) -> int:
        """Take speech (float32 [T]); how many samples were accepted, the first ones."""
        accepted = min(len(samples), self.timing.buffer_samples - self._pending_samples)
        if accepted > 0:
            self._pending.append(_Chunk(np.asarray(samples[:accepted], np.float32), now))
            self._pending_samples += accepted
        return accepted

    def finish(self, now: float) -> None:
        """What was pushed so far is an utterance."""
        self._pending.append(_Chunk(np.zeros(0, np.float32), now, last=True))

    def place(self, now: float, next_frame: int) -> None:
        """Move waiting speech to the timeline, not further ahead than `Timing.ahead_frames`."""
        delay = self.timing.delay_frames
        limit = round((now + delay + self.timing.ahead_frames) * SAMPLES_PER_FRAME)
        while self._pending and self.end < limit:
            chunk = self._pending.popleft()
            if not self._streaming and len(chunk.samples):
                # Live audio arrives at the pace it is played: from here on it stays ahead of what is needed by the
                # margin. Speech that is already waiting needs that much less of a run-up.
                if now - self._underrun_at < RESUME_FRAMES:
                    self._slack = min(self._slack + len(chunk.samples), MAX_SLACK_SAMPLES)
                cursor = round((now + delay) * SAMPLES_PER_FRAME) + self.timing.margin_samples + self._slack
                self.pad(max(cursor - self._pending_samples, next_frame * SAMPLES_PER_FRAME))
                self._streaming = True
            first = self.end
            taken = max(0, min(len(chunk.samples), limit - first))
            if taken:
                self._ring.append(chunk.samples[:taken])
                self._pending_samples -= taken
                self._spoken.append(Spoken(first, first + taken, chunk.arrived, self._offset))
                self._offset += taken
            if taken < len(chunk.samples):
                self._pending.appendleft(replace(chunk, samples=chunk.samples[taken:]))
            elif chunk.last:
                self._end_utterance()

    def demand(self, end: int, now: float) -> None:
        """Write up to sample `end`, with silence: no speech came in time."""
        if end > self.end and self._streaming:
            self._streaming = False
            self._underrun_at = now
            self.underruns += 1
        self.pad(end)

    def pad(self, end: int) -> None:
        """Silence up to sample `end`."""
        if end > self.end:
            self._ring.append(np.zeros(end - self.end, np.float32))

    def cut(self, first: int) -> tuple[int, int]:
        """Silence from sample `first` on, after a short ramp, and nothing waiting any more.

        Returns:
            Samples of the utterance that were played, and samples pushed that never will be.
        """
        heard = [run for run in self._spoken if run.first < first]
        played = heard[-1].offset + min(heard[-1].end, first) - heard[-1].first if heard else 0
        dropped = self._pending_samples + sum(max(0, run.end - max(run.first, first)) for run in self._spoken)
        ramp = self._ring.read(first, DECLICK_SAMPLES) * np.linspace(1, 0, DECLICK_SAMPLES, dtype=np.float32)
        self._pending.clear()
        self._pending_samples = 0
        self._end_utterance()
        self._spoken = deque(replace(run, end=min(run.end, first)) for run in heard)
        self._ring.truncate(first)
        self.pad(first)
        self._ring.append(ramp)
        return played, dropped

    def read(self, first: int, count: int) -> Samples:
        """Samples [first, first + count)."""
        return self._ring.read(first, count)

    def spoken(self, first: int, end: int) -> Spoken | None:
        """The speech in [first, end), the first if there is more; what was before `first` is forgotten."""
        while self._spoken and self._spoken[0].end <= first - SAMPLES_PER_FRAME:
            self._spoken.popleft()
        return next((run for run in self._spoken if run.first < end and run.end > first), None)

    def _end_utterance(self) -> None:
        self._streaming = False
        self._offset = self._slack = 0
        self._underrun_at = -math.inf
