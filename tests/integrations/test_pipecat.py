"""A pipecat pipeline with its own output transport, and no network; in real time."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import runpy
import sys
import warnings
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from avatard.integrations.stream import SegmentEnd, SessionStream, Stream
from avatard.media.pcm import to_pcm16
from tests.support import memory
from tests.support.paths import SCRIPTS
from tests.support.serving import beeps, running_session, until
from tests.support.sounds import write_wav

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("pipecat", reason="needs pip install 'avatard[pipecat]'")
    from pipecat.frames import frames as pipecat
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.worker import PipelineParams, PipelineWorker
    from pipecat.processors.frame_processor import FrameProcessor
    from pipecat.transports.base_output import BaseOutputTransport
    from pipecat.transports.base_transport import BaseTransport, TransportParams
    from pipecat.workers.runner import WorkerRunner

    from avatard.integrations.pipecat import AvatarVideoService

pytestmark = pytest.mark.filterwarnings("ignore")
RATE = 24_000


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


class Output(BaseOutputTransport):
    """A transport that plays in real time, and keeps what it played."""

    def __init__(self, ready: bool) -> None:
        super().__init__(
            TransportParams(
                audio_out_enabled=True,
                audio_out_sample_rate=RATE,
                video_out_enabled=True,
                video_out_is_live=True,
                video_out_framerate=25,
                video_out_width=256,
                video_out_height=256,
            )
        )
        self._at_once = ready
        self._due = 0.0
        self.sound: list[np.ndarray] = []
        self.pictures: list[Any] = []
        self.start_frame: Any = None

    async def start(self, frame: Any) -> None:
        await super().start(frame)
        self.start_frame = frame
        if self._at_once:
            await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: Any) -> bool:
        self.sound.append(np.frombuffer(frame.audio, np.int16))
        now = asyncio.get_running_loop().time()
        self._due = max(self._due, now) + frame.num_frames / frame.sample_rate
        await asyncio.sleep(self._due - frame.num_frames / frame.sample_rate - now)
        return True

    async def write_video_frame(self, frame: Any) -> bool:
        self.pictures.append(frame)
        return True

    @property
    def loud(self) -> int:
        """Samples that were heard, of those that are not silent."""
        return sum(int(np.count_nonzero(np.abs(part) > 100)) for part in self.sound)


class Tap(FrameProcessor):
    """Keeps the frames that pass by, without pictures and sound."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    async def process_frame(self, frame: Any, direction: Any) -> None:
        await super().process_frame(frame, direction)
        if not isinstance(frame, pipecat.AudioRawFrame | pipecat.ImageRawFrame):
            self.seen.append(frame)
        await self.push_frame(frame, direction)

    def of(self, kind: Any) -> list[Any]:
        return [frame for frame in self.seen if isinstance(frame, kind)]


class Bot:
    """A running pipeline; the test is the TTS service."""

    def __init__(self, stream: Stream, ready: bool = True) -> None:
        self.avatar = AvatarVideoService(stream)
        self.before, self.after, self.output = Tap(), Tap(), Output(ready)
        self.ends: list[SegmentEnd] = []
        pipeline = Pipeline([self.before, self.avatar, self.output, self.after])
        self.worker = PipelineWorker(
            pipeline, cancel_on_idle_timeout=False, enable_rtvi=False, params=PipelineParams(enable_metrics=True)
        )
        self.names = (f"answer-{number}" for number in itertools.count())
        self.started = asyncio.Event()

        @self.avatar.event_handler("on_utterance_ended")
        async def ended(_: Any, end: SegmentEnd) -> None:
            self.ends.append(end)

        @self.worker.event_handler("on_pipeline_started")
        async def started(*_: Any) -> None:
            self.started.set()

    async def __aenter__(self) -> Bot:
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(self.worker)
        self.running = asyncio.create_task(runner.run())
        await asyncio.wait_for(self.started.wait(), 30)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.worker.cancel()
        await asyncio.wait_for(self.running, 30)

    async def say(self, seconds: float, message_ms: int = 20, end: bool = True) -> None:
        name, spoken, size = next(self.names), beeps(seconds, RATE), RATE * message_ms // 1000
        await self.worker.queue_frame(pipecat.TTSStartedFrame(context_id=name))
        for first in range(0, len(spoken), size):
            audio = to_pcm16(spoken[first : first + size]).tobytes()
            await self.worker.queue_frame(pipecat.TTSAudioRawFrame(audio, RATE, 1, context_id=name))
        if end:
            await self.worker.queue_frame(pipecat.TTSStoppedFrame(context_id=name))

    async def interrupt(self) -> None:
        before = len(self.after.of(pipecat.InterruptionFrame))
        await self.worker.queue_frame(pipecat.InterruptionFrame())
        await until(lambda: len(self.after.of(pipecat.InterruptionFrame)) > before)


@asynccontextmanager
async def bot(ready: bool = True):
    async with running_session() as session, Bot(SessionStream(session), ready) as found:
        yield found


async def test_speech_comes_out_with_pictures_and_its_end(tmp_path):
    async with bot() as found:
        await found.say(0.5)
        await until(lambda: found.ends)
        assert [(end.played_ms, end.interrupted) for end in found.ends] == [(500, False)]
        await until(lambda: found.after.of(pipecat.TTSStoppedFrame))
        assert [frame.context_id for frame in found.after.of(pipecat.TTSStoppedFrame)] == ["answer-0"]
        assert found.output.loud > 0.2 * 0.5 * RATE, "the end follows the sound"
        starts, stops = (
            lambda kind=kind: len(found.before.of(kind))
            for kind in (pipecat.BotStartedSpeakingFrame, pipecat.BotStoppedSpeakingFrame)
        )
        await until(lambda: 0 < starts() == stops())  # pauses of 0.35 s count
        picture = found.output.pictures[-1]
        assert picture.size == (256, 256) and picture.format == "RGB"
        assert sum(map(len, found.output.sound)) < 1.3 * RATE, "no sound without speech"


async def test_what_is_said_before_the_transport_is_ready_waits():
    async with bot(ready=False) as found:
        await found.say(0.3)
        await asyncio.sleep(0.5)
        assert not found.output.pictures and not found.ends
        await found.output.set_transport_ready(found.output.start_frame)
        await until(lambda: found.ends)
        assert found.ends[0].played_ms == 300
        await until(lambda: found.output.pictures)


async def test_nothing_is_heard_after_an_interrupt():
    async with bot() as found:
        await found.say(20, message_ms=100, end=False)
        await until(lambda: found.output.loud > 5000)
        await found.interrupt()
        await until(lambda: found.ends)
        loud, seen = found.output.loud, len(found.output.pictures)
        await until(lambda: len(found.output.pictures) > seen + 30)
        assert found.output.loud == loud
        assert found.ends[0].interrupted and found.ends[0].dropped_ms > 15_000
        await found.say(0.3)
        await until(lambda: len(found.ends) == 2)
        assert not found.ends[1].interrupted and found.ends[1].played_ms == 300
        assert len(found.before.of(pipecat.BotStartedSpeakingFrame)) >= 2


async def test_the_end_of_the_pipeline_waits_for_the_speech():
    async with running_session() as session:
        found = Bot(SessionStream(session))
        async with found:
            await found.say(0.4, end=False)  # a service that forgets to say that it stopped
            await found.worker.queue_frame(pipecat.EndFrame())
            await asyncio.wait_for(asyncio.shield(found.running), 30)
        assert [(end.played_ms, end.interrupted) for end in found.ends] == [(400, False)]
        assert found.output.loud > 0.2 * 0.4 * RATE
        assert session.ready, "it was not the service's own"


async def test_twenty_utterances_and_five_interrupts():
    """In bursts of messages of 10 to 100 ms: one end each, positions within 40 ms."""
    random.seed(3)
    async with bot() as found:
        interrupted = set(random.sample(range(20), 5))
        for number, message_ms in zip(range(20), itertools.cycle([10, 20, 40, 100]), strict=False):
            seconds = random.uniform(0.15, 0.5)
            await found.say(seconds, message_ms, end=number not in interrupted)
            if number in interrupted:
                # Frames of the pipeline before the avatar are dropped by the interrupt, too.
                await until(lambda: found.avatar._open)
                await asyncio.sleep(random.uniform(0, 0.9))
                await found.interrupt()
                await until(lambda number=number: len(found.ends) == number + 1)
                loud = found.output.loud
                await asyncio.sleep(0.2)
                assert found.output.loud == loud
            else:
                stops = number + 1 - len([n for n in interrupted if n < number])
                await until(lambda stops=stops: len(found.after.of(pipecat.TTSStoppedFrame)) == stops)
                assert abs(found.ends[-1].played_ms - 1000 * seconds) <= 40
            assert found.ends[-1].interrupted == (number in interrupted)
        await asyncio.sleep(0.5)
        assert len(found.ends) == 20 and not found.avatar._open
        assert len(found.after.of(pipecat.TTSStoppedFrame)) == 15


@memory.long
async def test_memory_does_not_grow():
    async with bot() as found:

        async def once(number: int) -> None:
            await found.say(0.3, end=number % 10 != 0)
            if number % 10 == 0:
                await until(lambda: found.avatar._open)
                await found.interrupt()
            await until(lambda: len(found.ends) == number + 1)
            found.before.seen.clear()
            found.after.seen.clear()
            found.output.sound.clear()
            found.output.pictures.clear()

        assert await memory.growth(once) < memory.MOST_BYTES


async def test_the_example_bot_greets_and_ends_with_its_client(monkeypatch, tmp_path):
    example = runpy.run_path(str(SCRIPTS / "examples" / "pipecat_agent.py"))
    params = example["transport_params"]((256, 256))
    assert params.video_out_is_live and params.video_out_framerate == 25
    monkeypatch.setenv("GREETING", str(write_wav(tmp_path / "hello.wav", beeps(0.3, RATE), RATE)))
    async with running_session() as session:
        avatar = AvatarVideoService(SessionStream(session))
        monkeypatch.setitem(example["run"].__globals__, "make_avatar", lambda: avatar)
        output = Output(ready=True)

        class Transport(BaseTransport):
            def __init__(self) -> None:
                super().__init__()
                self._register_event_handler("on_client_disconnected")

            def input(self) -> Any:
                return Tap()

            def output(self) -> Any:
                return output

        transport = Transport()
        running = asyncio.create_task(example["run"](transport))
        await until(lambda: output.loud > 0.2 * 0.3 * RATE)
        await transport._call_event_handler("on_client_disconnected")
        await asyncio.wait_for(running, 30)
    assert output.pictures


async def test_an_avatar_that_is_gone_is_an_error():
    async with bot() as found:
        found.avatar._stream._close()
        await until(lambda: found.before.of(pipecat.ErrorFrame))
        assert "the avatar is gone" in found.before.of(pipecat.ErrorFrame)[0].error
        await found.say(0.1)
        await found.worker.queue_frame(pipecat.EndFrame())
        await asyncio.wait_for(asyncio.shield(found.running), 30)


def test_stereo_is_averaged_and_half_a_sample_dropped():
    from avatard.integrations.pipecat import _mono

    both = np.stack([np.full(100, 8192, np.int16), np.zeros(100, np.int16)], axis=1)
    frame = pipecat.TTSAudioRawFrame(both.tobytes() + b"\0", RATE, 2)
    np.testing.assert_allclose(_mono(frame), np.full(100, 0.125))
