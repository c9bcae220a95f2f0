"""Where speech comes from: a handle for each microphone, agent, file or socket that speaks.

    speaker = session.open_speaker()         # pushed speech: all of it is said, one speaker after the other
    speaker.push_audio(samples, 24_000)      # float32 [T] at any rate, as fast as it is produced
    await speaker.room()                     # back-pressure
    speaker.flush()                          # ends the utterance; returns its id

A handle owns resampling, its queue and the back-pressure, and what is dropped after an interrupt.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from avatard.clock import monotonic
from avatard.frame import Samples, Sound
from avatard.media.resample import SoundConverter
from avatard.playout.utterance import Utterance
from avatard.protocols.tasks import cancel_and_wait
from avatard.session.floor_control import FLOOR_SECONDS
from avatard.session.voice_activity import SPEAKING_RMS, rms
from avatard.timebase import FRAME_SECONDS, SAMPLE_RATE_HZ

MAX_WAITING_SECONDS = 300.0  # of pushed speech; then the sender must wait
MIN_PIECE_SECONDS = FRAME_SECONDS  # what a smaller piece counts for, so that their number is bounded, too
MAX_ID_LENGTH = 64
LIVE_BACKLOG_FRAMES = 0.5  # live sound that runs further behind is caught up with where it is quiet
MAX_BACKLOG_FRAMES = 12.5  # … and here wherever it is


class Turns(Protocol):
    """What a handle needs of `avatard.session.turn_taking.TurnTaking`, which documents it."""

    @property
    def attended(self) -> bool: ...  # noqa: D102
    @property
    def backlog_frames(self) -> float: ...  # noqa: D102
    def claim_floor(self, speaker: Speaker, pushed: bool, loud: bool = True) -> bool: ...  # noqa: D102
    def release_floor(self, speaker: Speaker) -> bool: ...  # noqa: D102
    async def next_frame(self) -> None: ...  # noqa: D102
    def queue(self, utterance: Utterance) -> None: ...  # noqa: D102
    def push(self, sound: Sound, utterance: Utterance) -> int: ...  # noqa: D102
    def caption(self, utterance: Utterance, text: str) -> None: ...  # noqa: D102
    def finish(self, utterance: Utterance) -> None: ...  # noqa: D102
    def interrupt(self) -> object: ...  # noqa: D102
    def forget(self, speaker: Speaker) -> None: ...  # noqa: D102


class Speaker(Protocol):
    """What turn-taking needs of every handle."""

    def end_turn(self) -> None:
        """Another speaker takes the floor: the utterance that was being said is over."""

    def cancel(self) -> list[Utterance]:
        """Drop what is queued, for an interrupt; return the utterances that had not ended, in order."""

    async def abort(self) -> None:
        """The session ends: whatever waits is dropped."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Pushed samples, or the end of their utterance."""

    utterance: Utterance
    samples: Samples | None  # None: the end
    rate_hz: int = SAMPLE_RATE_HZ

    @property
    def seconds(self) -> float:
        length = 0.0 if self.samples is None else len(self.samples) / self.rate_hz
        return max(MIN_PIECE_SECONDS, length)


class PushedSpeaker:
    """Speech that waits to be said: of an agent, a file or a socket."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._line: deque[_Piece] = deque()
        self._waiting_seconds = 0.0
        self._utterance: Utterance | None = None  # the one that is being pushed
        self._pushed_seconds = 0.0  # of it
        self._last_id = ""
        self._over = False  # it ended before its sender said so: the end that follows is its own
        self._cut_off_at: float | None = None  # what follows without a pause is the rest of what is dropped
        self._refused = False  # the utterance is no speech: it is dropped to its end, however its sender pauses
        self._converter: SoundConverter | None = None
        self._cancelled = 0
        self._closing = False
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._task = asyncio.create_task(self._feed(), name="speaker")

    @property
    def waiting_seconds(self) -> float:
        """Speech that waits in this handle."""
        return self._waiting_seconds

    def begin(self, utterance_id: str = "") -> str:
        """Begin an utterance, and end the one before; return its id.

        Args:
            utterance_id: the sender's own, at most 64 characters; one is made where it is not given.

        Raises:
            ValueError: the id is too long.
        """
        if len(utterance_id) > MAX_ID_LENGTH:
            raise ValueError(f"got an id of {len(utterance_id)} characters, expected at most {MAX_ID_LENGTH}")
        if self._utterance is not None:
            self.flush()
        self._accept_again()
        self._utterance = Utterance(utterance_id or secrets.token_hex(4))
        self._last_id, self._pushed_seconds = self._utterance.id, 0.0
        self._turns.queue(self._utterance)
        return self._utterance.id

    def push_audio(self, samples: Samples, rate_hz: int) -> None:
        """Queue samples, mono float32 [T]; they begin an utterance where none was begun.

        What is left of an utterance that was interrupted is dropped until its end, or until the sender pauses; of one
        that is no speech until its end.

        Raises:
            ValueError: the rate is not in 8,000-192,000 Hz.
        """
        if self._converter is None or self._converter.rate_hz != rate_hz:
            SoundConverter(rate_hz)  # refuses impossible rates here, and not in the queue
        if self._is_cut_off() or not len(samples):
            return
        if self._utterance is None:
            self.begin()
        assert self._utterance is not None
        self._pushed_seconds += len(samples) / rate_hz
        self._utterance.pushed = round(self._pushed_seconds * SAMPLE_RATE_HZ)
        self._put(_Piece(self._utterance, samples, rate_hz))

    def caption(self, text: str) -> None:
        """Tell the text of what is pushed next, when it begins to be heard."""
        if self._utterance is not None:
            self._turns.caption(self._utterance, text)

    def flush(self) -> str:
        """End the utterance, also an empty one; return its id."""
        if self._utterance is None and (self._over or self._cut_off_at is not None):
            self._accept_again()
            return self._last_id
        if self._utterance is None:
            self.begin()
        assert self._utterance is not None
        self._put(_Piece(self._utterance, None))
        self._utterance, self._cut_off_at, self._refused = None, None, False
        return self._last_id

    def drop_rest(self) -> None:
        """What is being sent is no speech: drop the utterance up to its end mark. It still ends."""
        if self._utterance is None:
            self.begin()
        self._refused = True

    def interrupt(self) -> None:
        """Stop all speech. It came in line with this speaker's, so what follows is new."""
        self._turns.interrupt()
        self._accept_again()

    async def room(self) -> None:
        """Wait while minutes of speech wait to be said."""
        while self._waiting_seconds > MAX_WAITING_SECONDS:
            self._drained.clear()
            await self._drained.wait()

    async def close(self) -> None:
        """Say what was pushed to its end, and close the handle."""
        if self._utterance is not None:
            self.flush()
        self._closing = True
        self._filled.set()
        await self._task
        self._turns.forget(self)

    async def abort(self) -> None:
        """See `Speaker`."""
        await cancel_and_wait(self._task)

    def end_turn(self) -> None:
        """See `Speaker`."""
        utterance, self._utterance = self._utterance, None
        if utterance is not None:
            self._over = True
            if self._converter is not None:
                self._turns.push(self._converter.flush(), utterance)
            self._turns.finish(utterance)

    def cancel(self) -> list[Utterance]:
        """See `Speaker`."""
        utterances = dict.fromkeys(piece.utterance for piece in self._line)
        if self._utterance is not None:
            utterances[self._utterance] = None
            self._cut_off_at = monotonic()
        self._line.clear()
        self._waiting_seconds, self._utterance, self._converter = 0.0, None, None
        self._cancelled += 1
        self._drained.set()
        return [utterance for utterance in utterances if not utterance.ended]

    def _accept_again(self) -> None:
        self._over, self._cut_off_at, self._refused = False, None, False

    def _is_cut_off(self) -> bool:
        if self._cut_off_at is None or self._refused:
            return self._refused
        before, self._cut_off_at = self._cut_off_at, monotonic()
        if self._cut_off_at - before > FLOOR_SECONDS:
            self._cut_off_at = None
        return self._cut_off_at is not None

    def _put(self, piece: _Piece) -> None:
        self._line.append(piece)
        self._waiting_seconds += piece.seconds
        self._filled.set()

    async def _feed(self) -> None:
        """Move what waits to the session, when this speaker has the floor and the session has room."""
        while not (self._closing and not self._line):
            if not self._line:
                self._filled.clear()
                await self._filled.wait()
            elif self._turns.claim_floor(self, pushed=True):
                piece = self._line.popleft()
                self._waiting_seconds = max(0.0, self._waiting_seconds - piece.seconds)
                self._drained.set()
                await self._say(piece)
            else:
                await self._turns.next_frame()

    def _convert(self, samples: Samples, rate_hz: int) -> Sound:
        """At both rates; a sender that changes its rate goes on without a gap."""
        before = self._converter
        if before is not None and before.rate_hz == rate_hz:
            return before.push(samples)
        self._converter = SoundConverter(rate_hz)
        sound = self._converter.push(samples)
        return before.flush().then(sound) if before is not None else sound

    async def _say(self, piece: _Piece) -> None:
        cancelled = self._cancelled
        if piece.samples is None:
            sound = self._converter.flush() if self._converter is not None else None
        else:
            sound = self._convert(piece.samples, piece.rate_hz)
        while sound is not None and len(sound):
            sound = sound.part(self._turns.push(sound, piece.utterance))
            if len(sound):
                await self._turns.next_frame()
            if self._cancelled != cancelled:
                return
        if piece.samples is None:
            self._turns.finish(piece.utterance)
            self._turns.release_floor(self)


class LiveSpeaker:
    """What a microphone hears now; what cannot be said now is dropped."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._converter: SoundConverter | None = None
        self._utterance = Utterance("")

    def push_audio(self, samples: Samples, rate_hz: int) -> bool:
        """Say what a microphone hears, mono float32 [T].

        Returns:
            False if it was dropped: another is speaking, or it is quiet and late, or quiet and nobody watches.

        Raises:
            ValueError: the rate is not in 8,000-192,000 Hz.
        """
        if self._converter is None or self._converter.rate_hz != rate_hz:
            self._converter = SoundConverter(rate_hz)
        sound = self._converter.push(samples)
        level = rms(sound.speech)
        loud = level > SPEAKING_RMS
        if not loud and not self._turns.attended:
            return False
        if not self._turns.claim_floor(self, pushed=False, loud=loud):
            return False
        # A microphone's clock is not ours: what it gains is left out where it is quiet, or the latency would grow.
        behind = self._turns.backlog_frames
        if behind > LIVE_BACKLOG_FRAMES and (level < SPEAKING_RMS / 2 or behind > MAX_BACKLOG_FRAMES):
            return False
        self._utterance.pushed += len(sound)
        self._turns.push(sound, self._utterance)
        return True

    def interrupt(self) -> None:
        """Stop all speech."""
        self._turns.interrupt()

    def close(self) -> None:
        """The microphone is gone."""
        if self._turns.release_floor(self):
            self.end_turn()
        self._turns.forget(self)

    def end_turn(self) -> None:
        """See `Speaker`."""
        self._turns.finish(self._utterance)
        self._utterance = Utterance("")

    def cancel(self) -> list[Utterance]:
        """See `Speaker`."""
        self._utterance = Utterance("")
        return []

    async def abort(self) -> None:
        """See `Speaker`."""
