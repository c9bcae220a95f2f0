"""aiortc's private parts do here what its next release may change."""

import asyncio
import datetime
from typing import Any

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.rtcdtlstransport import RTCCertificate
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RtcpPsfbPacket,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtpPacket,
    pack_remb_fci,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from OpenSSL import SSL

from avatard.protocols.aiortc_internals import (
    PassthroughJitterBuffer,
    PeerConnection,
    limit_retransmissions,
    on_feedback,
)
from tests.support.serving import until


def packet(number: int) -> RtpPacket:
    packet = RtpPacket(sequence_number=number % 65536, timestamp=960 * number)
    packet._data = bytes([number % 256])  # type: ignore[attr-defined]
    return packet


def test_each_packet_is_decoded_at_once_and_none_twice_or_after_a_later_one():
    buffer = PassthroughJitterBuffer()
    given = [buffer.add(packet(number))[1] for number in (65534, 65535, 65536, 65536, 65539, 65538, 65540)]
    assert [frame and frame.timestamp // 960 for frame in given] == [65534, 65535, 65536, None, 65539, None, 65540]
    assert given[0] is not None and given[0].data == bytes([65534 % 256])


class RsaCertificate(RTCCertificate):
    """The certificate of GStreamer 1.22 and its suites."""

    suites = b"ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-SHA"

    @classmethod
    def generateCertificate(cls) -> Any:  # noqa: N802 - aiortc's name
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gstreamer")])
        now = datetime.datetime.now(tz=datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)  # type: ignore[arg-type]

    def _create_ssl_context(self, srtp_profiles: Any) -> SSL.Context:
        context = super()._create_ssl_context(srtp_profiles)
        context.set_cipher_list(self.suites)
        return context


class OldCertificate(RsaCertificate):
    suites = b"AES128-GCM-SHA256"  # no forward secrecy


async def connect(certificate: Any) -> tuple[PeerConnection, RTCPeerConnection]:
    """A connection of ours, and a client with this certificate."""
    client = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    client._RTCPeerConnection__certificates = [certificate.generateCertificate()]  # type: ignore[attr-defined]
    client.createDataChannel("events")
    ours = PeerConnection(RTCConfiguration(iceServers=[]))
    await client.setLocalDescription(await client.createOffer())
    await ours.setRemoteDescription(RTCSessionDescription(client.localDescription.sdp, "offer"))
    await ours.setLocalDescription(await ours.createAnswer())
    await client.setRemoteDescription(RTCSessionDescription(ours.localDescription.sdp, "answer"))
    return ours, client


@pytest.mark.parametrize("certificate", [RTCCertificate, RsaCertificate])
async def test_clients_with_either_kind_of_certificate_connect(certificate):
    ours, client = await connect(certificate)
    await until(lambda: ours.connectionState == client.connectionState == "connected")
    await asyncio.gather(ours.close(), client.close())


async def test_a_dtls_handshake_that_fails_has_its_reason():
    ours, client = await connect(OldCertificate)
    await until(lambda: ours.connectionState == "failed")
    assert ours.failure() == (
        "DTLS failed: the client sent alert 40 (handshake failure: no shared cipher suite, curve or SRTP profile)"
    )
    await asyncio.gather(ours.close(), client.close())


class Repeating:
    """A sender that is asked to repeat packets."""

    def __init__(self) -> None:
        self._RTCRtpSender__packet_count = 0
        self.repeated: list[int] = []

    async def _retransmit(self, sequence_number: int) -> None:
        self.repeated.append(sequence_number)


async def test_a_packet_is_repeated_once_in_a_round_trip_and_not_more_are_than_are_sent():
    sender, now = Repeating(), [0.0]
    limit_retransmissions(sender, lambda: now[0])  # type: ignore[arg-type]
    for _ in range(10):
        await sender._retransmit(7)
    assert sender.repeated == [7]
    now[0] = 0.2
    await sender._retransmit(7)
    assert sender.repeated == [7, 7]
    for number in range(1000):
        await sender._retransmit(number + 100)
    assert len(sender.repeated) == 40, "a burst"
    sender._RTCRtpSender__packet_count += 100
    for number in range(1000):
        await sender._retransmit(number + 5000)
    assert len(sender.repeated) == 80


async def test_what_a_receiver_tells_of_the_network_is_read():
    class Sender:
        _ssrc = 5

        async def _handle_rtcp_packet(self, packet: Any) -> None:
            handled.append(packet)

    handled: list[Any] = []
    told: list[float] = []
    sender: Any = Sender()
    on_feedback(sender, told.append, lambda lost: told.append(-lost))
    info = {"packets_lost": 3, "highest_sequence": 9, "jitter": 1, "lsr": 0, "dlsr": 0}
    reports = [RtcpReceiverInfo(ssrc=ssrc, fraction_lost=64, **info) for ssrc in (5, 6)]
    packets = [
        RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=pack_remb_fci(250_000, [5])),
        RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=pack_remb_fci(99_000, [6])),
        RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=b"none"),
        RtcpRrPacket(ssrc=1, reports=reports),
    ]
    for packet in packets:
        await sender._handle_rtcp_packet(packet)
    assert told == [250_000, -0.25] and handled == packets
