"""Frames are encoded once for each codec in use and given to the viewers, whatever happens to the encoder."""

import asyncio
import re
from typing import Any

import av
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext
from scipy import signal

from avatard.clock import monotonic
from avatard.protocols import broadcast
from avatard.protocols.broadcast import AudioEncoder, Broadcaster, Encoder, Encoding, Rendition, Track
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
    video, _ = broadcaster.add_client(["video", "audio"], Rendition("vp8"), nobody)
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
    asked: list[set[Rendition]] = []
    encode = Encoder.encode

    def recording(self: Encoder, index: int, pixels: Any, pcm: Any, renditions: Any, keys: Any) -> Any:
        asked.append(set(renditions))
        return encode(self, index, pixels, pcm, renditions, keys)

    monkeypatch.setattr(Encoder, "encode", recording)
    broadcaster = Broadcaster(Encoding(), monotonic)
    viewers: dict[Codec, Track] = {}
    for codec in broadcaster.encoding.codecs:
        (viewers[codec],) = broadcaster.add_client(["video"], Rendition(codec), nobody)
    broadcaster.send(0, np.zeros((64, 64, 3), np.uint8), np.zeros(1920, np.int16))
    assert not broadcaster.queued, "nobody is connected yet"
    packets: dict[Codec, bytes] = {"vp8": bytes(await sent(broadcaster, asyncio.create_task(viewers["vp8"].recv()), 1))}
    assert asked.pop() == {Rendition("vp8")}
    packets["h264"] = bytes(await sent(broadcaster, asyncio.create_task(viewers["h264"].recv()), 1000))
    assert asked[-1] == {Rendition("vp8"), Rendition("h264")}
    for decodable, data in packets.items():
        (picture,) = decoded(decodable, data)
        assert (picture.width, picture.height) == (64, 64), "each viewer begins at a key frame of its codec"
    broadcaster.release([viewers["vp8"]])
    while not viewers["h264"]._queue.empty():
        await viewers["h264"].recv()
    await sent(broadcaster, asyncio.create_task(viewers["h264"].recv()), 2000)
    assert asked[-1] == {Rendition("h264")}
    await broadcaster.close()


@pytest.mark.parametrize("codec", ["vp8", "h264"])
def test_pictures_need_not_be_square_and_may_change_size(codec):
    encoder = Encoder(Encoding(codec))
    for index, (width, height) in enumerate([(64, 96), (161, 91), (1080, 1080)]):
        rgb = np.full((height, width, 3), 90, np.uint8)
        frame = encoder.encode(index, rgb, np.zeros(1920, np.int16), {Rendition(codec)}).video[Rendition(codec)]
        (picture,) = decoded(codec, frame.data)
        assert frame.key and (picture.width, picture.height) == (width & ~1, height & ~1)


@pytest.mark.parametrize("codec", ["vp8", "h264"])
@pytest.mark.parametrize("height", [96, 97])
def test_what_is_transparent_is_stacked_or_lies_over_chequers(codec, height):
    rgba = np.full((height, 128, 4), (200, 60, 40, 255), np.uint8)
    rgba[:, :64, 3] = 0
    plain, stacked = Rendition(codec), Rendition(codec, stacked=True)
    made = Encoder(Encoding(codec)).encode(0, rgba, np.zeros(1920, np.int16), {plain, stacked})
    (shown,) = decoded(codec, made.video[plain].data)
    seen = shown.to_ndarray(format="rgb24").astype(int)
    assert seen.shape == (96, 128, 3)
    np.testing.assert_allclose(seen[10:80, 80:], np.broadcast_to((200, 60, 40), (70, 48, 3)), atol=12)
    assert seen[10:80, :56].min() > 180, "grey chequers"
    (both,) = decoded(codec, made.video[stacked].data)
    seen = both.to_ndarray(format="rgb24").astype(int)
    assert seen.shape == (192, 128, 3)
    np.testing.assert_allclose(seen[10:80, 10:], np.broadcast_to((200, 60, 40), (70, 118, 3)), atol=12)
    assert seen[106:180, :56].max() < 12 and seen[106:180, 72:].min() > 243, "matte"


def test_an_opaque_picture_has_a_white_matte():
    rendition = Rendition("h264", stacked=True)
    rgb = np.full((64, 64, 3), 90, np.uint8)
    data = Encoder(Encoding("h264")).encode(0, rgb, np.zeros(1920, np.int16), {rendition}).video[rendition].data
    (picture,) = decoded("h264", data)
    assert picture.to_ndarray(format="rgb24")[72:].min() > 243


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
            rendition = Rendition(codec)
            keys = {rendition} if n == 0 else ()
            data = encoder.encode(n, noise // 4 + 90, silence, {rendition}, keys).video[rendition].data
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


def nal_units(data: bytes) -> list[bytes]:
    """The units of an H.264 picture in byte stream format (ITU-T H.264, annex B)."""
    return [unit for unit in re.split(rb"\x00\x00\x00?\x01", data) if unit]


def test_what_obs_decodes_each_key_frame_has_its_parameter_sets_and_nothing_needs_more_than_baseline():
    """A player may join at any key frame: nothing is told out of band (RFC 6184, section 8.2.2)."""
    rendition = Rendition("h264")
    encoder = Encoder(Encoding("h264"))
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (128, 128, 3)).astype(np.uint8)
    keys, silence = (0, 7, broadcast.KEY_FRAME_INTERVAL + 7), np.zeros(1920, np.int16)
    for index in range(max(keys) + 1):
        asked = {rendition} if index == 7 else set()
        made = encoder.encode(index, np.roll(noise, index, 1), silence, {rendition}, asked).video[rendition]
        kinds = [unit[0] & 31 for unit in nal_units(made.data)]
        assert made.key == (index in keys)
        if made.key:
            assert kinds[:2] == [7, 8] and kinds[-1] == 5, "SPS, PPS, and a picture that needs none before it"
            profile, constraints, level = nal_units(made.data)[0][1:4]
            assert (profile, constraints & 0xC0, level) == (66, 0xC0, 31), "constrained baseline, level 3.1"
            assert len(decoded("h264", made.data)) == 1
        else:
            assert set(kinds) <= {1, 6}


def test_a_codec_without_an_encoder_is_not_offered(monkeypatch):
    assert Encoding("h264").codecs == ("h264", "vp8")
    monkeypatch.setattr(broadcast, "ENCODERS", {"vp8": "libvpx", "h264": "libnosuch"})
    assert Encoding("h264").codecs == Encoding("vp8").codecs == ("vp8",)


async def test_a_viewer_of_a_lower_bit_rate_has_it_from_a_key_frame_on_and_others_keep_theirs():
    now = [0.0]
    broadcaster = Broadcaster(Encoding(), lambda: now[0])
    (good,), (bad,) = (broadcaster.add_client(["video"], Rendition("vp8"), nobody) for _ in range(2))
    for track in (good, bad):
        await sent(broadcaster, asyncio.create_task(track.recv()), 0)
    bad.reported(0.9)
    now[0] = 10.0
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    index = 1000
    async with asyncio.timeout(20):
        while bad.rendition == Rendition("vp8"):
            broadcaster.send(index, noise, np.zeros(1920, np.int16))
            index += 1
            await asyncio.sleep(0.01)
    assert bad.rendition == Rendition("vp8", share=0.125) and good.rendition == Rendition("vp8")
    packets = [bytes(await bad.recv()) for _ in range(bad._queue.qsize())]
    assert any(decodes(data) for data in packets), "from a key frame on"
    await broadcaster.close()


def decodes(data: bytes) -> bool:
    try:
        return bool(decoded("vp8", data))
    except av.FFmpegError:
        return False


async def test_key_frames_that_are_asked_for_at_once_are_one():
    now = [0.0]
    broadcaster = Broadcaster(Encoding(), lambda: now[0])
    rendition = Rendition("vp8")
    taken = []
    for now[0] in (0.0, 0.04, 0.08, 0.4):
        broadcaster.request_key_frame(rendition)
        taken.append(broadcaster._take_keys({rendition}, now[0]))
    assert taken == [{rendition}, set(), set(), {rendition}]
    broadcaster.request_key_frame(rendition)
    assert broadcaster._take_keys({rendition}, 0.5) == set()
    assert broadcaster._take_keys({rendition}, 0.8) == {rendition}, "it is not forgotten"
    await broadcaster.close()
