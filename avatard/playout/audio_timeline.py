"""The sound of every frame: speech is placed ahead of the play position, silence where there is none in time.

Times are the play position `now` in frames (25 a second). The timeline is written ahead of it by
`Timing.delay_frames`, which is the latency of live speech. Samples are counted at 16 kHz.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from avatard.config import Stream
from avatard.frame import Samples, Sound
from avatard.playout.ring import AudioRing
from avatard.playout.utterance import Span, Utterance, UtteranceChange
from avatard.timebase import FPS, PLAYBACK_RATIO, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME

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
    tick_frames: float = 0.25  # `Scheduler.poll` is called at least this often
    margin_samples: int = 640  # tick plus packet length plus jitter of live audio that is absorbed without a gap
    ahead_frames: int = 50  # speech that arrives early is written at most this far ahead
    buffer_samples: int = 30 * SAMPLE_RATE_HZ  # speech accepted beyond that; then the sender must wait

    @classmethod
    def of(cls, stream: Stream, compute_frames: float) -> Timing:
        """For a configuration."""
        return cls(
            hop_frames=stream.hop_frames,
            fade_frames=stream.fade_frames,
            lookahead_samples=math.ceil(stream.lookahead_ms * FPS / 1000) * SAMPLES_PER_FRAME,
            compute_frames=compute_frames,
        )

    @property
    def delay_frames(self) -> float:
        """Latency of live speech, in frames: hop + fade + look-ahead + compute."""
        lookahead = self.lookahead_samples / SAMPLES_PER_FRAME
        return self.hop_frames + self.fade_frames + lookahead + self.compute_frames


@dataclass(frozen=True, slots=True)
class SpeechRun:
    """A run of pushed samples on the timeline; an empty one marks the end of its utterance."""

    first: int
    end: int
    arrived: float  # play position when it was pushed
    utterance: Utterance | None  # None: what is left of one that was interrupted
    last: bool  # ends its utterance


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Pushed samples that are not on the timeline yet."""

    sound: Sound
    arrived: float
    utterance: Utterance
    last: bool = False  # ends its utterance


class AudioTimeline:
    """Sound by absolute sample number, and the speech that waits for its place there."""

    def __init__(self, timing: Timing, first_frame: int) -> None:
        self.timing = timing
        self.underruns = 0  # times that speech came too late, and silence was written
        longest = replace(timing, compute_frames=max(MAX_COMPUTE_FRAMES, timing.compute_frames))
        kept = HISTORY_FRAMES + timing.ahead_frames + math.ceil(longest.delay_frames) + 2 * timing.hop_frames
        capacity, first = kept * SAMPLES_PER_FRAME, first_frame * SAMPLES_PER_FRAME
        self._speech = AudioRing(capacity, first)
        self._playback = AudioRing(PLAYBACK_RATIO * capacity, PLAYBACK_RATIO * first)
        self._pending: deque[_Chunk] = deque()
        self._pending_samples = 0
        self._runs: deque[SpeechRun] = deque()
        self._streaming = False  # speech is written without a gap
        self._slack = 0  # margin added for a sender whose packets are longer or later than `Timing.margin_samples`
        self._underrun_at = -math.inf

    @property
    def end(self) -> int:
        """The first sample that is not written yet."""
        return self._speech.end

    @property
    def waiting_samples(self) -> int:
        """Speech that was accepted and is not placed yet."""
        return self._pending_samples

    def has_speech(self) -> bool:
        """Whether there is speech that was not played yet, or an utterance that has not ended."""
        return bool(self._pending or self._runs)

    def backlog_frames(self, now: float) -> float:
        """How much later than intended a sample pushed now will be played, in frames."""
        intended = self.timing.margin_samples + self._slack
        waiting = self.end + self._pending_samples - intended
        return waiting / SAMPLES_PER_FRAME - now - self.timing.delay_frames

    def push(self, sound: Sound, now: float, utterance: Utterance) -> int:
        """Take speech; return how many samples were accepted, the first ones."""
        accepted = min(len(sound), self.timing.buffer_samples - self._pending_samples)
        if accepted > 0:
            self._pending.append(_Chunk(sound.part(0, accepted), now, utterance))
            self._pending_samples += accepted
        return accepted

    def finish(self, now: float, utterance: Utterance) -> None:
        """End the utterance that was pushed so far."""
        self._pending.append(_Chunk(Sound.of_speech(np.zeros(0, np.float32)), now, utterance, last=True))

    def place(self, now: float, next_frame: int) -> None:
        """Move waiting speech to the timeline, not further ahead than `Timing.ahead_frames`."""
        delay = self.timing.delay_frames
        limit = round((now + delay + self.timing.ahead_frames) * SAMPLES_PER_FRAME)
        while self._pending and self.end < limit:
            chunk = self._pending.popleft()
            if not self._streaming and len(chunk.sound):
                # Live audio arrives at the pace it is played: from here on it stays ahead of what is needed by the
                # margin. Speech that is already waiting needs that much less of a run-up.
                if now - self._underrun_at < RESUME_FRAMES:
                    self._slack = min(self._slack + len(chunk.sound), MAX_SLACK_SAMPLES)
                cursor = round((now + delay) * SAMPLES_PER_FRAME) + self.timing.margin_samples + self._slack
                self.pad(max(cursor - self._pending_samples, next_frame * SAMPLES_PER_FRAME))
                self._streaming = True
            first = self.end
            taken = max(0, min(len(chunk.sound), limit - first))
            rest = chunk.sound.part(taken)
            if taken:
                self._append(chunk.sound.part(0, taken))
                self._pending_samples -= taken
            if taken or chunk.last:
                last = chunk.last and not len(rest)
                self._runs.append(SpeechRun(first, first + taken, chunk.arrived, chunk.utterance, last))
            if len(rest):
                self._pending.appendleft(replace(chunk, sound=rest))
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
        """Write silence up to sample `end`."""
        if end > self.end:
            self._append(Sound.of_speech(np.zeros(end - self.end, np.float32)))

    def cut(self, first: int) -> list[Utterance]:
        """Write silence from sample `first` on, after a short ramp, and forget what waits.

        Returns:
            The utterances that end with it, in order.
        """
        runs = [run for run in self._runs if run.first < first or (run.last and run.end <= first)]
        whole = {run.utterance for run in runs if run.last and run.end <= first}
        spoken = [run.utterance for run in self._runs] + [chunk.utterance for chunk in self._pending]
        ended = [u for u in dict.fromkeys(spoken) if u is not None and u not in whole]
        for run in runs:
            if run.utterance in ended:
                _count(run, first)
        for utterance in ended:
            utterance.ended = utterance.interrupted = True
        ramp = np.linspace(1, 0, DECLICK_SAMPLES, dtype=np.float32)
        fading = Sound(
            self._speech.read(first, DECLICK_SAMPLES) * ramp,
            self._read_playback(first, DECLICK_SAMPLES) * np.repeat(ramp, PLAYBACK_RATIO),
        )
        self._pending.clear()
        self._pending_samples = 0
        self._end_utterance()
        self._runs = deque(
            run if run.utterance in whole else replace(run, end=min(run.end, first), utterance=None, last=False)
            for run in runs
        )
        self._speech.truncate(first)
        self._playback.truncate(PLAYBACK_RATIO * first)
        self.pad(first)
        self._append(fading)
        return ended

    def read(self, first: int, count: int) -> Samples:
        """Samples [first, first + count) that the networks hear."""
        return self._speech.read(first, count)

    def play(self, first: int, count: int) -> tuple[Sound, SpeechRun | None, list[UtteranceChange], list[Span]]:
        """Play samples [first, first + count), which follow those played before.

        Returns:
            The sound, the first run of speech in it, the utterances that start and end in it, and which of its samples
            are whose, in order.
        """
        end = first + count
        run = next((r for r in self._runs if r.first < end and r.end > first), None)
        changes: list[UtteranceChange] = []
        spans: list[Span] = []
        while self._runs:
            head = self._runs[0]
            if head.first >= end and (head.first > end or head.end > end):
                break
            utterance = head.utterance
            if utterance is not None and not utterance.started:
                utterance.started = True
                changes.append(UtteranceChange(utterance, "started"))
            _count(head, end)
            if utterance is not None and head.end > head.first:
                spans.append(Span(utterance, max(head.first - first, 0), min(head.end, end) - first))
            if head.end > end:
                self._runs[0] = replace(head, first=end)
                break
            if head.last and utterance is not None:
                utterance.ended = True
                changes.append(UtteranceChange(utterance, "ended"))
            self._runs.popleft()
        return Sound(self._speech.read(first, count), self._read_playback(first, count)), run, changes, spans

    def _append(self, sound: Sound) -> None:
        self._speech.append(sound.speech)
        self._playback.append(sound.playback)

    def _read_playback(self, first: int, count: int) -> Samples:
        return self._playback.read(PLAYBACK_RATIO * first, PLAYBACK_RATIO * count)

    def _end_utterance(self) -> None:
        self._streaming = False
        self._slack = 0
        self._underrun_at = -math.inf


def _count(run: SpeechRun, until: int) -> None:
    """Count what is played of a run before sample `until`; what was played before is no part of it any more."""
    if run.utterance is not None:
        run.utterance.played += max(0, min(run.end, until) - run.first)
