"""Frames are encoded once for each codec in use and given to the viewers, whatever happens to the encoder."""

import asyncio
from typing import Any

import av
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext
from scipy import signal

from avatard.clock import monotonic
from avatard.protocols import broadcast
from avatard.protocols.broadcast import AudioEncoder, Broadcaster, Encoder, Encoding, Track
from avatard.protocols.offer import Codec
from tests.support.serving import said


def nobody(kind: str, index: int) -> None:
    pass


async def sent(broadcaster: Broadcaster, packets: "asyncio.Task[Any]", first: int) -> Any:
    """Send frames until a packet comes."""
    index = first
    async with asyncio.timeout(20):
        while not packets.done():
            broadcaster.send(index, np.full((64, 64, 3), 90, np.uint8), np.zeros(1920, np.int16))
            index += 1
            await asyncio.sleep(0.01)
    return packets.result()


async def test_after_an_error_a_fresh_encoder_goes_on_at_a_key_frame(monkeypatch, caplog):
    monkeypatch.setattr(broadcast, "RETRY_SECONDS", 0.1)
    broadcaster = Broadcaster(Encoding(), monotonic)
    video, _ = broadcaster.add_client(["video", "audio"], "vp8", nobody)
    await sent(broadcaster, asyncio.create_task(video.recv()), 0)
    encode, failing = Encoder.encode, iter([True, True])

    def sometimes(self: Encoder, *arguments: Any) -> Any:
        if next(failing, False):
            raise RuntimeError("no memory")
        return encode(self, *arguments)

    monkeypatch.setattr(Encoder, "encode", sometimes)
    while not said(caplog):
        broadcaster.send(1000, np.full((64, 64, 3), 90, np.uint8), np.zeros(1920, np.int16))
        await asyncio.sleep(0.01)
    while not video._queue.empty():
        await video.recv()
    packet = await sent(broadcaster, asyncio.create_task(video.recv()), 1001)
    decoder = av.CodecContext.create("vp8", "r")
    assert isinstance(decoder, VideoCodecContext)
    assert decoder.decode(packet), "it can be decoded without what was before"
    assert said(caplog) == ["encoding failed"] * 2
    assert broadcaster.dropped
    await broadcaster.close()


def decoded(codec: str, data: bytes) -> list[Any]:
    decoder = av.CodecContext.create(codec, "r")
    assert isinstance(decoder, VideoCodecContext)
    return decoder.decode(av.Packet(data)) + decoder.decode(None)


async def test_each_codec_is_encoded_while_somebody_watches_it(monkeypatch):
    asked: list[set[str]] = []
    encode = Encoder.encode

    def recording(self: Encoder, index: int, rgb: Any, pcm: Any, codecs: Any, keys: Any) -> Any:
        asked.append(set(codecs))
        return encode(self, index, rgb, pcm, codecs, keys)

    monkeypatch.setattr(Encoder, "encode", recording)
    broadcaster = Broadcaster(Encoding(), monotonic)
    viewers: dict[Codec, Track] = {}
    for codec in broadcaster.encoding.codecs:
        (viewers[codec],) = broadcaster.add_client(["video"], codec, nobody)
    broadcaster.send(0, np.zeros((64, 64, 3), np.uint8), np.zeros(1920, np.int16))
    assert not broadcaster.queued, "nobody is connected yet"
    packets: dict[Codec, bytes] = {"vp8": bytes(await sent(broadcaster, asyncio.create_task(viewers["vp8"].recv()), 1))}
    assert asked.pop() == {"vp8"}
    packets["h264"] = bytes(await sent(broadcaster, asyncio.create_task(viewers["h264"].recv()), 1000))
    assert asked[-1] == {"vp8", "h264"}
    for decodable, data in packets.items():
        (picture,) = decoded(decodable, data)
        assert (picture.width, picture.height) == (64, 64), "each viewer begins at a key frame of its codec"
    broadcaster.release([viewers["vp8"]])
    while not viewers["h264"]._queue.empty():
        await viewers["h264"].recv()
    await sent(broadcaster, asyncio.create_task(viewers["h264"].recv()), 2000)
    assert asked[-1] == {"h264"}
    await broadcaster.close()


@pytest.mark.parametrize("codec", ["vp8", "h264"])
def test_pictures_need_not_be_square_and_may_change_size(codec):
    encoder = Encoder(Encoding(codec))
    for index, (width, height) in enumerate([(64, 96), (161, 91), (1080, 1080)]):
        rgb = np.full((height, width, 3), 90, np.uint8)
        frame = encoder.encode(index, rgb, np.zeros(1920, np.int16), {codec}).video[codec]
        (picture,) = decoded(codec, frame.data)
        assert frame.key and (picture.width, picture.height) == (width & ~1, height & ~1)


@pytest.mark.parametrize(
    ("size", "bitrate_bps"),
    [((256, 256), 1_500_000), ((512, 512), 1_500_000), ((1080, 1080), 3_164_062), ((1920, 1080), 4_218_750)],
)
def test_larger_pictures_have_a_higher_bit_rate(size, bitrate_bps):
    assert Encoding().video_bitrate_bps(*size) == bitrate_bps


@pytest.mark.parametrize("codec", ["vp8", "h264"])
def test_the_bit_rate_is_the_one_asked_for(codec):
    """Noise cannot be compressed, so the encoder spends what it is allowed."""
    rng = np.random.default_rng(0)
    silence = np.zeros(1920, np.int16)
    spent = []
    for bitrate_bps in (300_000, 1_200_000):
        encoder = Encoder(Encoding(codec, bitrate_bps))
        size = 0
        for n in range(100):
            noise = rng.integers(0, 255, (256, 256, 3), np.uint8)
            data = encoder.encode(n, noise // 4 + 90, silence, {codec}, {codec} if n == 0 else ()).video[codec].data
            size += len(data) if n >= 25 else 0
        spent.append(size * 8 * 25 / 75)
    assert spent[1] > 2.2 * spent[0], spent
    assert spent[1] == pytest.approx(1_200_000, rel=0.5)


def test_opus_keeps_the_treble():
    """Less than 1 dB is lost up to 16 kHz."""
    noise = (3000 * np.random.default_rng(0).standard_normal(6 * 48_000)).astype(np.int16)
    encoder = AudioEncoder(Encoding().audio_bitrate_bps)
    decoder = av.CodecContext.create("libopus", "r")
    assert isinstance(decoder, av.AudioCodecContext)
    decoder.sample_rate, decoder.layout = 48_000, "mono"
    heard = []
    for index, pcm in enumerate(noise.reshape(-1, 1920)):
        heard += [frame.to_ndarray().ravel() for frame in decoder.decode(av.Packet(encoder.encode(index, pcm)))]
    hz, before = signal.welch(noise.astype(np.float64), 48_000, nperseg=1024)
    _, after = signal.welch(np.concatenate(heard).astype(np.float64), 48_000, nperseg=1024)
    loss = 10 * np.log10(np.convolve(after / before, np.ones(9) / 9, "same"))
    loss -= np.median(loss[(hz > 200) & (hz < 4000)])
    assert loss[(hz > 200) & (hz < 16_000)].min() > -1
