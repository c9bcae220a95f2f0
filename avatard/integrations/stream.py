"""An avatar as agent frameworks use one: segments of speech in; frames out, with the ends of segments.

    stream = SessionStream.of_portrait("me.png")
    await stream.start()
    stream.push(samples, 24_000)          # float32 [T]: begins a segment where none is open
    stream.end()                          # the segment is complete
    async for frame in stream:            # 25 a second, for ever
        frame.picture, frame.speech, frame.ended
    stream.interrupt()                    # nothing of what was pushed is in any frame from here on

A segment is what the frameworks wait for: it ends exactly once, also if it is interrupted or another speaker takes the
floor in the middle of it, which makes two utterances of it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avatard import config_loader
from avatard.frame import Samples
from avatard.media.pcm import to_pcm16
from avatard.playout.scheduler import PlayoutFrame
from avatard.portrait import Portrait
from avatard.protocols.events import Event, Utterance
from avatard.session.session import ENGINE, Session
from avatard.session.speaker import PushedSpeaker
from avatard.timebase import FPS, PLAYBACK_RATE_HZ

MAX_PICTURES = FPS  # that wait for a framework which does not take them: 1 s
MAX_FRAMES = 30 * FPS  # … and frames with speech, which lose their picture first


@dataclass(frozen=True, slots=True)
class SegmentEnd:
    """What became of a segment."""

    id: str
    played_ms: int
    dropped_ms: int  # pushed and never heard; 0 unless interrupted
    interrupted: bool


@dataclass(frozen=True, slots=True)
class AvatarFrame:
    """40 ms of an avatar."""

    picture: NDArray[np.uint8] | None  # RGB [H, W, 3]; None before the first
    sound: NDArray[np.int16]  # [rate_hz / 25], whoever speaks, and silence
    speech: NDArray[np.int16]  # [T]: the part of it that was pushed into this stream, to the sample
    rate_hz: int
    speaking: bool  # whether anybody speaks in it
    ended: tuple[SegmentEnd, ...] = ()  # segments whose last sample is in it, or that were interrupted before it

    def silenced(self) -> AvatarFrame:
        """Its picture alone, and the ends."""
        return replace(self, sound=np.zeros_like(self.sound), speech=self.speech[:0], speaking=False)


class Stream(ABC):
    """Frames that wait for the framework, and the calls of the module's description."""

    def __init__(self) -> None:
        self._waiting: deque[AvatarFrame] = deque()
        self._filled = asyncio.Event()
        self._closed = False

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures, once it is started."""

    @abstractmethod
    async def start(self) -> None:
        """Begin to give frames. Raises `UserError` where there is no avatar to be had."""

    @abstractmethod
    async def stop(self) -> None:
        """End the iteration, and free what `start` made."""

    @abstractmethod
    def push(self, samples: Samples, rate_hz: int) -> str:
        """Say samples, mono float32 [T]; return the id of their segment, "" where the stream is over.

        Raises:
            ValueError: the rate is not in 8,000-192,000 Hz.
        """

    @abstractmethod
    def end(self) -> str:
        """Complete the segment; return its id, "" where none is open."""

    @abstractmethod
    async def room(self) -> None:
        """Wait while minutes of speech wait to be said."""

    @abstractmethod
    def interrupt(self) -> None:
        """Drop what was not heard yet, also of frames that wait; all segments end."""

    async def __aiter__(self) -> AsyncIterator[AvatarFrame]:
        """The frames, as they are due, to the end of the stream."""
        while self._waiting or not self._closed:
            if self._waiting:
                yield self._waiting.popleft()
            else:
                self._filled.clear()
                await self._filled.wait()

    def _put(self, frame: AvatarFrame) -> None:
        """Let a frame wait; of many, those that only show somebody silent are dropped first, then pictures."""
        waiting = self._waiting
        waiting.append(frame)
        if len(waiting) > MAX_PICTURES:
            idle = next((n for n, f in enumerate(waiting) if not f.speaking and not f.ended), None)
            if idle is not None:
                del waiting[idle]
            else:
                waiting[-MAX_PICTURES - 1] = replace(waiting[-MAX_PICTURES - 1], picture=None)
        if len(waiting) > MAX_FRAMES:
            oldest = waiting.popleft()
            waiting[0] = replace(waiting[0], ended=oldest.ended + waiting[0].ended)
        self._filled.set()

    def _silence(self) -> None:
        """Take all sound from the frames that wait."""
        self._waiting = deque(frame.silenced() for frame in self._waiting)

    def _close(self, now: bool = False) -> None:
        """End the iteration: after what waits, or now."""
        if now:
            self._waiting.clear()
        self._closed = True
        self._filled.set()


@dataclass(slots=True)
class _Segment:
    """Pushed speech up to its end."""

    id: str
    complete: bool = False  # its sender ended it
    utterances: set[str] = field(default_factory=set)  # of it, that have not ended
    played_ms: int = 0
    dropped_ms: int = 0
    interrupted: bool = False

    def count(self, event: Utterance) -> None:
        """An utterance of it ended."""
        self.utterances.discard(event.id)
        self.played_ms += event.played_ms or 0
        self.dropped_ms += event.dropped_ms or 0
        self.interrupted |= bool(event.interrupted)

    def ended(self) -> SegmentEnd:
        return SegmentEnd(self.id, self.played_ms, self.dropped_ms, self.interrupted)


class SessionStream(Stream):
    """A session in this process.

    Args:
        session: the avatar.
        owned: whether `start` and `stop` start and stop it, too.
    """

    def __init__(self, session: Session, *, owned: bool = False) -> None:
        super().__init__()
        self._session = session
        self._owned = owned
        self._speaker: PushedSpeaker | None = None
        self._segments: deque[_Segment] = deque()  # that have not ended
        self._ended: list[SegmentEnd] = []  # since the last frame
        self._own: set[str] = set()  # utterances that may be in the next frame
        self._calling = False  # utterances that begin now are this stream's
        self._muted = False  # what is heard until somebody speaks again is the rest of what was interrupted

    @classmethod
    def of_portrait(
        cls,
        portrait: str | Path,
        settings: Sequence[str] = (),
        *,
        config: str | Path = "nano",
        engine: str = ENGINE,
    ) -> SessionStream:
        """An avatar of its own; `start` waits until its networks are warm.

        Args:
            portrait: a picture file.
            settings: configuration keys, as of `--set`: "stream.profile=low-latency".
            config: as of `--config`.
            engine: `module:function` that makes the engine in the inference process.

        Raises:
            UserError: the picture or the configuration cannot be used.
        """
        effective = config_loader.load(config, settings, environ=os.environ).config
        picture = Portrait.read(Path(portrait), effective.portrait.face)
        return cls(Session(effective, picture, engine), owned=True)

    @property
    def size(self) -> tuple[int, int]:
        """See `Stream`."""
        assert self._session.generation.at_rest is not None
        height, width, _ = self._session.generation.at_rest.pixels.shape
        return width, height

    async def start(self) -> None:
        """See `Stream`."""
        if self._owned:
            try:
                await self._session.start()
            except BaseException:
                self._close()
                await self._session.stop()
                raise
        self._speaker = self._session.open_speaker()
        self._unlisten = self._session.listen(self._on_event)
        self._session.attach(self)

    async def stop(self) -> None:
        """See `Stream`."""
        self._close(now=True)
        speaker, self._speaker = self._speaker, None
        if speaker is not None:
            self._session.detach(self)
            if self._segments:
                speaker.interrupt()
            self._unlisten()
            await speaker.close()
        if self._owned:
            await self._session.stop()

    def push(self, samples: Samples, rate_hz: int) -> str:
        """See `Stream`."""
        if self._speaker is None:  # it did not start, or was stopped
            return ""
        begins = not self._segments or self._segments[-1].complete
        self._calling = True
        try:
            if begins:
                self._segments.append(_Segment(secrets.token_hex(4)))
                self._speaker.begin(self._segments[-1].id)
            self._speaker.push_audio(samples, rate_hz)
        finally:
            self._calling = False
        return self._segments[-1].id

    def end(self) -> str:
        """See `Stream`."""
        if not self._segments or self._segments[-1].complete:
            return ""
        assert self._speaker is not None
        segment = self._segments[-1]
        segment.complete = True
        self._speaker.flush()
        self._settle()
        return segment.id

    async def room(self) -> None:
        """See `Stream`."""
        if self._speaker is not None:
            await self._speaker.room()

    def interrupt(self) -> None:
        """See `Stream`."""
        self._silence()
        if self._segments and self._speaker is not None:
            self._speaker.interrupt()
            self._muted = True
            for segment in self._segments:
                segment.complete = segment.interrupted = True
            self._settle()

    def play(self, entry: PlayoutFrame) -> None:
        """Take a frame that is due: the session calls it."""
        own = [entry.sound.part(span.first, span.end) for span in entry.spans if span.utterance.id in self._own]
        self._muted = self._muted and not entry.spans
        ended, self._ended = tuple(self._ended), []
        self._own = {name for segment in self._segments for name in segment.utterances}
        frame = AvatarFrame(
            entry.picture.rgb if entry.picture is not None else None,
            to_pcm16(entry.sound.playback),
            to_pcm16(np.concatenate([sound.playback for sound in own])) if own else np.zeros(0, np.int16),
            PLAYBACK_RATE_HZ,
            bool(entry.spans),
            ended,
        )
        self._put(frame.silenced() if self._muted else frame)

    def _on_event(self, event: Event) -> None:
        if not isinstance(event, Utterance):
            return
        if event.state == "queued" and self._calling:
            self._segments[-1].utterances.add(event.id)
            self._own.add(event.id)
        elif event.state == "ended":
            for segment in self._segments:
                if event.id in segment.utterances:
                    segment.count(event)
                    self._settle()
                    break

    def _settle(self) -> None:
        """Tell which segments have ended."""
        while self._segments and self._segments[0].complete and not self._segments[0].utterances:
            self._ended.append(self._segments.popleft().ended())
