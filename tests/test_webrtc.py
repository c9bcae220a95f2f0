"""Sound from a client: taken as it comes, with what was lost as silence."""

import av
import numpy as np
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RtpPacket

from avatard.protocols.webrtc import IceServers, NoBuffer, Peer


def packet(number: int) -> RtpPacket:
    packet = RtpPacket(sequence_number=number % 65536, timestamp=960 * number)
    packet._data = bytes([number % 256])  # type: ignore[attr-defined]
    return packet


def test_each_packet_is_handed_on_at_once_and_none_twice_or_after_a_later_one():
    buffer = NoBuffer()
    given = [buffer.add(packet(number))[1] for number in (65534, 65535, 65536, 65536, 65539, 65538, 65540)]
    assert [frame and frame.timestamp // 960 for frame in given] == [65534, 65535, 65536, None, 65539, None, 65540]
    assert given[0] is not None and given[0].data == bytes([65534 % 256])


class Frames:
    """A track of frames of 20 ms at these positions, full of ones."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    async def recv(self) -> av.AudioFrame:
        if not self.numbers:
            raise MediaStreamError
        frame = av.AudioFrame.from_ndarray(np.full((1, 960), 16384, np.int16), "s16", "mono")
        frame.sample_rate, frame.pts = 48_000, 960 * self.numbers.pop(0)
        return frame


class Ear:
    def __init__(self) -> None:
        self.sound = np.zeros(0, np.float32)

    def on_audio(self, samples, rate_hz):
        self.sound = np.concatenate([self.sound, samples])

    def on_closed(self):
        pass


async def test_lost_packets_are_silence_and_a_pause_is_none():
    ear = Ear()
    peer = Peer(None, IceServers(), ear)  # type: ignore[arg-type]
    await peer._read(Frames(10, 11, 14, 200, 201))  # type: ignore[arg-type]
    await peer.close()
    assert (ear.sound.reshape(-1, 960)[:, 0] == [0.5, 0.5, 0, 0, 0.5, 0.5, 0.5]).all()
