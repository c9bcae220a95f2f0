"""pipecat: avatard as the video service of a pipeline, between the text-to-speech service and the output transport.

    avatar = AvatarVideoService("me.png")                                                   # in this process
    avatar = AvatarVideoService(DaemonStream("http://127.0.0.1:8080", "tcp://127.0.0.1:5556"))   # a running daemon
    Pipeline([transport.input(), stt, …, tts, avatar, transport.output(), …])

The transport needs `audio_out_enabled`, `video_out_enabled`, `video_out_is_live`, `video_out_framerate=25`, and the
picture's size: `video_out_width` and `video_out_height`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np

from avatard.frame import Samples
from avatard.integrations.extras import needs
from avatard.integrations.stream import AvatarFrame, SegmentEnd, SessionStream, Stream
from avatard.timebase import FPS

with needs("pipecat", "pipecat"):
    from pipecat.frames.frames import (
        CancelFrame,
        EndFrame,
        Frame,
        InterruptionFrame,
        OutputImageRawFrame,
        OutputTransportReadyFrame,
        SpeechOutputAudioRawFrame,
        StartFrame,
        TTSAudioRawFrame,
        TTSStartedFrame,
        TTSStoppedFrame,
    )
    from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
    from pipecat.services.ai_service import AIService
    from pipecat.services.settings import ServiceSettings

#: Silence after speech, by which the transport notices that the bot stopped; it waits 0.35 s.
TAIL_FRAMES = FPS // 2
MAX_PENDING_SECONDS = 300.0  # of speech, while the transport is not ready


class AvatarVideoService(AIService):
    """Says what the TTS service says, with a face.

    It takes `TTSAudioRawFrame` and `TTSStoppedFrame` out of the pipeline, and puts in `OutputImageRawFrame`, 25 a
    second, `SpeechOutputAudioRawFrame` of 40 ms while there is speech, and each `TTSStoppedFrame` where its utterance
    was heard to its end. Nothing is put in before the transport is ready; what is said before waits. At an
    `InterruptionFrame` nothing is heard any more, also of speech that is marked as uninterruptible. At an `EndFrame`
    it says everything first.

    The event `on_utterance_ended` has what became of each: `SegmentEnd(id, played_ms, dropped_ms, interrupted)`.

    Args:
        stream: the avatar, or a picture file for one of its own.
        kwargs: of `FrameProcessor`, such as `name`.

    Raises:
        UserError: the picture cannot be used.
    """

    def __init__(self, stream: Stream | str | Path, **kwargs: Any) -> None:
        super().__init__(settings=ServiceSettings(model=None), **kwargs)
        self._stream = stream if isinstance(stream, Stream) else SessionStream.of_portrait(stream)
        self._pending: asyncio.Queue[TTSAudioRawFrame | TTSStoppedFrame] = asyncio.Queue()
        self._pending_seconds = 0.0
        self._context: str | None = None  # of the segment that is being pushed
        self._open: dict[str, TTSStoppedFrame | None] = {}  # segments that have not ended
        self._told = asyncio.Event()  # something of the above has changed
        self._gone = False  # the avatar
        self._ready = asyncio.Event()
        self._interrupts = 0
        self._tail = 0
        self._running: list[asyncio.Task[None]] = []
        self._register_event_handler("on_utterance_ended")

    def can_generate_metrics(self) -> bool:
        """From the first text-to-speech sound to the first sound of the avatar."""
        return True

    async def setup(self, setup: FrameProcessorSetup) -> None:
        """Start the avatar, which takes seconds.

        Raises:
            UserError: there is none to be had.
        """
        await super().setup(setup)
        await self._stream.start()

    async def start(self, frame: StartFrame) -> None:
        """Begin to give frames, once the transport is ready."""
        await super().start(frame)
        self._running = [self.create_task(self._speak()), self.create_task(self._show())]

    async def stop(self, frame: EndFrame) -> None:
        """Say everything, and end."""
        await super().stop(frame)
        while self._ready.is_set() and not self._gone and (not self._pending.empty() or self._open):
            self._told.clear()
            if self._pending.empty():
                self._close_segment()  # of a service that forgot to
            await self._told.wait()
        await self._end_tasks()

    async def cancel(self, frame: CancelFrame) -> None:
        """End at once."""
        await super().cancel(frame)
        await self._end_tasks()

    async def cleanup(self) -> None:
        """Stop the avatar."""
        await super().cleanup()
        await self._end_tasks()
        await self._stream.stop()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Take a frame of the pipeline; see the class."""
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame | TTSStoppedFrame) and direction is FrameDirection.DOWNSTREAM:
            await self._queue(frame)
            return
        if isinstance(frame, TTSStartedFrame):
            await self.start_ttfb_metrics()
        elif isinstance(frame, InterruptionFrame):
            self._interrupt()
        elif isinstance(frame, OutputTransportReadyFrame):
            self._ready.set()
        await self.push_frame(frame, direction)

    async def _queue(self, frame: TTSAudioRawFrame | TTSStoppedFrame) -> None:
        seconds = _seconds(frame)
        if self._pending_seconds + seconds > MAX_PENDING_SECONDS:
            await self.push_error(f"dropped speech: {MAX_PENDING_SECONDS:.0f} s wait, and the transport is not ready")
            return
        self._pending_seconds += seconds
        self._pending.put_nowait(frame)

    def _interrupt(self) -> None:
        while not self._pending.empty():
            self._pending.get_nowait()
        self._pending_seconds = 0.0
        self._interrupts += 1
        self._tail = 0
        self._context = None
        self._open = dict.fromkeys(self._open)
        self._stream.interrupt()
        self._told.set()

    async def _speak(self) -> None:
        """Push what the TTS service said; no await is between taking a frame and pushing it."""
        await self._ready.wait()
        while True:
            frame = await self._pending.get()
            self._pending_seconds = max(0.0, self._pending_seconds - _seconds(frame))
            if isinstance(frame, TTSStoppedFrame):
                if not self._close_segment(frame):
                    await self.push_frame(frame)
                continue
            if frame.context_id != self._context:
                self._close_segment()
            self._context = frame.context_id
            self._open.setdefault(self._stream.push(_mono(frame), frame.sample_rate), None)
            self._told.set()
            await self._stream.room()

    def _close_segment(self, frame: TTSStoppedFrame | None = None) -> bool:
        """End the segment that is being pushed, and keep the frame until it was heard; return whether there was one."""
        name = self._stream.end()
        if name:
            self._open[name] = frame
        self._context = None
        return bool(name)

    async def _show(self) -> None:
        """Give the avatar's frames to the pipeline."""
        async for frame in self._stream:
            if self._ready.is_set():
                await self._give(frame)
            for end in frame.ended:
                await self._tell(end)
        self._gone = True
        self._told.set()
        await self.push_error("the avatar is gone", force_treat_as_permanent=True)

    async def _give(self, frame: AvatarFrame) -> None:
        interrupts = self._interrupts
        if frame.picture is not None:
            height, width, _ = frame.picture.shape
            await self.push_frame(OutputImageRawFrame(frame.picture.tobytes(), (width, height), "RGB"))
        if interrupts != self._interrupts:
            return
        if frame.speaking:
            await self.stop_ttfb_metrics()
            self._tail = TAIL_FRAMES + 1
        if self._tail > 0:
            self._tail -= 1
            await self.push_frame(SpeechOutputAudioRawFrame(frame.sound.tobytes(), frame.rate_hz, 1))

    async def _tell(self, end: SegmentEnd) -> None:
        stopped = self._open.pop(end.id, None)
        if stopped is not None:
            await self.push_frame(stopped)
        await self._call_event_handler("on_utterance_ended", end)
        self._told.set()

    async def _end_tasks(self) -> None:
        running, self._running = self._running, []
        for task in running:
            await self.cancel_task(task)


def _seconds(frame: TTSAudioRawFrame | TTSStoppedFrame) -> float:
    """Of its sound."""
    return frame.num_frames / frame.sample_rate if isinstance(frame, TTSAudioRawFrame) else 0.0


def _mono(frame: TTSAudioRawFrame) -> Samples:
    """Its samples, float32 [T]; several channels are averaged."""
    whole = len(frame.audio) - len(frame.audio) % (2 * frame.num_channels)
    pcm = np.frombuffer(frame.audio[:whole], "<i2").astype(np.float32) / np.float32(32768)
    mono: Samples = pcm.reshape(-1, frame.num_channels).mean(axis=1, dtype=np.float32)
    return mono
