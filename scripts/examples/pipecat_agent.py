"""A pipecat bot with a face: it says a WAV file (16 bits) to whoever connects with a browser.

    pip install 'avatard[pipecat]' 'pipecat-ai[runner,webrtc]'
    PORTRAIT=me.png GREETING=hello.wav python scripts/examples/pipecat_agent.py

With AVATARD=http://127.0.0.1:8080 and AVATARD_ZMQ=tcp://127.0.0.1:5556, the face is that of a running `avatard serve
--zmq tcp://127.0.0.1:5556`. For a conversation, put your services for speech, language and voice where `Greeting` is.
"""

import os
import wave
from typing import Any

from pipecat.frames.frames import Frame, OutputTransportReadyFrame, TTSAudioRawFrame, TTSStartedFrame, TTSStoppedFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.base_transport import BaseTransport, TransportParams
from pipecat.workers.runner import WorkerRunner

from avatard.integrations.daemon import DaemonStream
from avatard.integrations.pipecat import AvatarVideoService

PIECE_SECONDS = 0.1


class Greeting(FrameProcessor):
    """Says a WAV file when there is somebody to hear it, as a TTS service would."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Pass every frame on."""
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if isinstance(frame, OutputTransportReadyFrame):
            await self._say()

    async def _say(self) -> None:
        await self.push_frame(TTSStartedFrame())
        with wave.open(self._path) as file:
            rate, channels = file.getframerate(), file.getnchannels()
            while data := file.readframes(round(rate * PIECE_SECONDS)):
                await self.push_frame(TTSAudioRawFrame(data, rate, channels))
        await self.push_frame(TTSStoppedFrame())


def make_avatar() -> AvatarVideoService:
    """An avatar in this process, or that of a running daemon."""
    url = os.environ.get("AVATARD", "")
    if not url:
        return AvatarVideoService(os.environ["PORTRAIT"])
    endpoint = os.environ.get("AVATARD_ZMQ", "tcp://127.0.0.1:5556")
    return AvatarVideoService(DaemonStream(url, endpoint, token=os.environ.get("AVATARD_TOKEN", "")))


def transport_params(size: tuple[int, int] = (512, 512)) -> TransportParams:
    """What a transport needs for an avatar's pictures of this size."""
    return TransportParams(
        audio_in_enabled=True,
        audio_out_enabled=True,
        video_out_enabled=True,
        video_out_is_live=True,
        video_out_framerate=25,
        video_out_width=size[0],
        video_out_height=size[1],
    )


async def run(transport: BaseTransport) -> None:
    """Greet whoever is at the other end of a transport, until they leave."""
    pipeline = Pipeline([transport.input(), Greeting(os.environ["GREETING"]), make_avatar(), transport.output()])
    worker = PipelineWorker(pipeline, params=PipelineParams(enable_metrics=True))

    @transport.event_handler("on_client_disconnected")
    async def end(*_: object) -> None:
        await worker.cancel()

    runner = WorkerRunner()
    await runner.add_workers(worker)
    await runner.run()


async def bot(arguments: Any) -> None:
    """What pipecat's runner calls for each client."""
    from pipecat.runner.utils import create_transport

    await run(await create_transport(arguments, {"webrtc": transport_params}))


if __name__ == "__main__":
    from pipecat.runner.run import main

    main()
