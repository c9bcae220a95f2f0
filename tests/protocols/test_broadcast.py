"""Frames are encoded once and handed to the viewers, whatever happens to the encoder."""

import asyncio
from typing import Any

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext

from avatard.clock import monotonic
from avatard.protocols import broadcast
from avatard.protocols.broadcast import Broadcaster, Encoder, Encoding
from tests.support.serving import said


def nobody(kind: str, index: int) -> None:
    pass


async def sent(hub: Broadcaster, packets: "asyncio.Task[Any]", first: int) -> Any:
    """Send frames until a packet comes."""
    index = first
    async with asyncio.timeout(20):
        while not packets.done():
            hub.send(index, np.full((64, 64, 3), 90, np.uint8), np.zeros(640, np.int16))
            index += 1
            await asyncio.sleep(0.01)
    return packets.result()


async def test_after_an_error_a_fresh_encoder_goes_on_at_a_key_frame(monkeypatch, caplog):
    monkeypatch.setattr(broadcast, "RETRY_SECONDS", 0.1)
    hub = Broadcaster(Encoding(), monotonic)
    video, _ = hub.tracks(["video", "audio"], nobody)
    await sent(hub, asyncio.create_task(video.recv()), 0)
    encode, failing = Encoder.encode, iter([True, True])

    def sometimes(self: Encoder, *arguments: Any) -> Any:
        if next(failing, False):
            raise RuntimeError("no memory")
        return encode(self, *arguments)

    monkeypatch.setattr(Encoder, "encode", sometimes)
    while not said(caplog):
        hub.send(1000, np.full((64, 64, 3), 90, np.uint8), np.zeros(640, np.int16))
        await asyncio.sleep(0.01)
    while not video._queue.empty():
        await video.recv()
    packet = await sent(hub, asyncio.create_task(video.recv()), 1001)
    decoder = av.CodecContext.create("vp8", "r")
    assert isinstance(decoder, VideoCodecContext)
    assert decoder.decode(packet), "it can be decoded without what was before"
    assert said(caplog) == ["encoding failed"] * 2
    assert hub.dropped
    await hub.close()
