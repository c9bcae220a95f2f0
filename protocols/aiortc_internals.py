"""Everything that avatard uses of aiortc beyond its public interface, in one place.

`pyproject.toml` pins `aiortc>=1.16,<1.17` because of this module: the names below are private, so any release may move
them. To raise the pin, check each item
against the new source:

`PeerConnection`: `RTCPeerConnection.__certificates`, for a certificate with RSA cipher suites and the reason
of a DTLS failure.
`DtlsCertificate`: `RTCCertificate._create_ssl_context`; aiortc lists ECDSA suites, and GStreamer 1.22 has an RSA
certificate.
`bypass_jitter_buffer`: `RTCRtpReceiver.__jitter_buffer`, `JitterBuffer._is_video`, `RtpPacket._data`; 80 ms less
latency.
`on_key_frame_request`: `RTCRtpSender._send_keyframe`; ready-made packets do not pass aiortc's encoder.
`tap_rtp`: `RTCRtpReceiver._handle_rtp_packet` and `.__kind`, for arrival times before the jitter buffer.
`limit_retransmissions`: `RTCRtpSender._retransmit` and `.__packet_count`; aiortc repeats whatever it is asked to.
`tap_rtcp`: `RTCRtpSender._handle_rtcp_packet` and the receiver's; aiortc keeps estimates to its own encoders.
`IceRestart`: `RTCIceTransport._connection`, `._recv`, `._send`, `._monitor`, `.__monitor_task`, and
`RTCIceGatherer._connection`, `._remote_candidates_end`; aiortc has no ICE restart.
`use_ports`: aioice's `Connection.get_component_candidates`, `._protocols`, `StunProtocol.local_candidate` and
`server_reflexive_candidate`; aioice binds any port, and tells its own addresses only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from aioice import Candidate, Connection
from aioice.candidate import candidate_foundation, candidate_priority
from aioice.ice import StunProtocol, server_reflexive_candidate
from aioice.stun import TransactionError
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCRtpSender
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtcdtlstransport import RTCCertificate, RTCDtlsTransport, SRTPProtectionProfile
from aiortc.rtcicetransport import RTCIceTransport
from aiortc.rtp import (
    RTCP_PSFB_APP,
    AnyRtcpPacket,
    RtcpPsfbPacket,
    RtcpRrPacket,
    RtcpSrPacket,
    RtpPacket,
    unpack_remb_fci,
)
from aiortc.utils import uint16_gt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from avatard.protocols.media_ports import MediaPorts

#: Forward-secret suites for either kind of certificate, in the order of RFC 8827, section 6.5, and of browsers.
CIPHERS = ":".join(
    f"ECDHE-{key}-{suite}"
    for suite in ("AES128-GCM-SHA256", "CHACHA20-POLY1305", "AES256-GCM-SHA384", "AES128-SHA", "AES256-SHA")
    for key in ("ECDSA", "RSA")
)
STUN_SECONDS = 5.0  # as aioice waits
RETRANSMISSION_SECONDS = 0.1  # between two of the same packet
RETRANSMISSION_SHARE, RETRANSMISSION_BURST = 0.5, 40.0  # of the packets sent; that many at once
#: RFC 8446, section 6: the alerts that explain a handshake that failed.
ALERTS = {
    10: "unexpected message",
    20: "bad record MAC",
    40: "handshake failure: no shared cipher suite, curve or SRTP profile",
    42: "bad certificate",
    43: "unsupported certificate",
    44: "certificate revoked",
    45: "certificate expired",
    46: "certificate unknown",
    47: "illegal parameter",
    48: "unknown CA",
    50: "decode error",
    51: "decrypt error",
    70: "protocol version",
    71: "insufficient security",
    80: "internal error",
}


class DtlsCertificate(RTCCertificate):
    """A certificate whose connections accept peers with ECDSA and RSA certificates, and which notes fatal alerts."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, cert: x509.Certificate) -> None:
        super().__init__(key, cert)
        self.alerts: list[str] = []

    def _create_ssl_context(self, srtp_profiles: list[SRTPProtectionProfile]) -> SSL.Context:
        context = super()._create_ssl_context(srtp_profiles)
        context.set_cipher_list(CIPHERS.encode())
        context.set_info_callback(self._on_info)
        return context

    def _on_info(self, connection: SSL.Connection, where: int, value: int) -> None:
        alert, level = value & 0xFF, value >> 8
        if not where & SSL.SSL_CB_ALERT or level != 2:
            return
        side = "the client sent" if where & SSL.SSL_CB_READ else "this side sent"
        self.alerts.append(f"{side} alert {alert} ({ALERTS.get(alert, 'see RFC 8446')})")


class PeerConnection(RTCPeerConnection):
    """aiortc's connection, with a certificate of ours."""

    def __init__(self, configuration: RTCConfiguration) -> None:
        super().__init__(configuration)
        self._certificate = DtlsCertificate.generateCertificate()
        self._RTCPeerConnection__certificates = [self._certificate]

    @property
    def dtls_transports(self) -> list[RTCDtlsTransport]:
        """The transports in use: one where everything is bundled."""
        holders = [transceiver.receiver for transceiver in self.getTransceivers()]
        transports = [holder.transport for holder in holders] + ([self.sctp.transport] if self.sctp else [])
        return list(dict.fromkeys(transports))

    def failure(self) -> str:
        """Why the connection was not established, in one line."""
        for dtls in self.dtls_transports:
            ice = dtls.transport
            if ice.state != "completed":
                candidates = ", ".join(
                    f"{candidate.type} {candidate.ip}:{candidate.port}/{candidate.protocol}"
                    for candidate in ice.getRemoteCandidates()
                )
                return f"ICE {ice.state}: no path to {candidates or 'the client, which named no address'}"
            if dtls.state != "connected":
                if self._certificate.alerts:
                    return f"DTLS {dtls.state}: {self._certificate.alerts[-1]}"
                if dtls.encrypted:
                    return f"DTLS {dtls.state}: the certificate's fingerprint or the SRTP profile does not match"
                return f"DTLS {dtls.state}: the client did not finish the handshake"
        return "the connection was lost"


class PassthroughJitterBuffer:
    """Replaces aiortc's jitter buffer for sound, which holds back 80 ms, and 320 ms where a packet is lost.

    The scheduler has a margin for jitter. A packet that is lost, or arrives after a later one, becomes silence.
    """

    def __init__(self) -> None:
        self._newest: int | None = None

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        """The signature of aiortc's: whether a key frame is needed, and the frame that can be decoded now."""
        if self._newest is not None and not uint16_gt(packet.sequence_number, self._newest):
            return False, None
        self._newest = packet.sequence_number
        return False, JitterFrame(packet._data, packet.timestamp)  # type: ignore[attr-defined]


def bypass_jitter_buffer(connection: RTCPeerConnection) -> None:
    """Decode sound packets as they arrive; call before the first packet."""
    for receiver in connection.getReceivers():
        buffer = getattr(receiver, "_RTCRtpReceiver__jitter_buffer", None)
        if buffer is not None and not buffer._is_video:
            receiver._RTCRtpReceiver__jitter_buffer = PassthroughJitterBuffer()  # type: ignore[attr-defined]


def on_key_frame_request(sender: RTCRtpSender, callback: Callable[[], None]) -> None:
    """Call `callback` where the receiver asks for a key frame (RTCP PLI or FIR)."""
    sender._send_keyframe = callback  # type: ignore[method-assign]


def tap_rtp(receiver: RTCRtpReceiver, callback: Callable[[str, RtpPacket], None]) -> None:
    """Call `callback` with the kind and each RTP packet as it arrives, before the jitter buffer."""
    handle: Any = receiver._handle_rtp_packet
    kind: str = receiver._RTCRtpReceiver__kind  # type: ignore[attr-defined]

    async def tapped(packet: RtpPacket, arrival_time_ms: int) -> None:
        callback(kind, packet)
        await handle(packet, arrival_time_ms)

    receiver._handle_rtp_packet = tapped  # type: ignore[method-assign]


def use_ports(connection: Connection, ports: MediaPorts | None) -> None:
    """Let a connection that has not gathered candidates yet bind, and announce, as `ports` says."""
    if ports is not None:
        connection.get_component_candidates = partial(_gather, connection, ports)  # type: ignore[method-assign]


async def _gather(connection: Connection, ports: MediaPorts, component: int, addresses: list[str]) -> list[Candidate]:
    """In the place of `Connection.get_component_candidates`. Raises `NoPortError`."""
    bound = ports.bind(addresses)
    own: list[StunProtocol] = []
    try:
        for sock in bound:
            _, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
                partial(StunProtocol, connection), sock=sock
            )
            # What a check arrives at, whatever address the client was told.
            protocol.local_candidate = _host_candidate(component, *sock.getsockname()[:2])
            connection._protocols.append(protocol)
            own.append(protocol)
    finally:
        for sock in bound[len(own) :]:
            sock.close()
    told = [protocol.local_candidate for protocol in own]
    # The announced addresses are what a STUN server would tell.
    queries = [] if ports.announced or connection.stun_server is None else own
    if ports.announced and told:
        told = [
            _host_candidate(component, address, told[0].port, preference=65535 - place)
            for place, address in enumerate(ports.announced)
        ]
    relayed, *reflexive = await asyncio.gather(
        Connection.get_component_candidates(connection, component, []),
        *(_reflexive(protocol, connection.stun_server) for protocol in queries),
    )
    return [*told, *(candidate for found in reflexive for candidate in found), *relayed]


def _host_candidate(component: int, address: str, port: int, preference: int = 65535) -> Candidate:
    return Candidate(
        foundation=candidate_foundation("host", "udp", address),
        component=component,
        transport="udp",
        priority=candidate_priority(component, "host", preference),
        host=address,
        port=port,
        type="host",
    )


async def _reflexive(protocol: StunProtocol, server: tuple[str, int] | None) -> Sequence[Candidate]:
    """What a STUN server sees; nothing where it does not answer."""
    if server is None or ":" in protocol.local_candidate.host:
        return ()
    try:
        async with asyncio.timeout(STUN_SECONDS):
            return (await server_reflexive_candidate(protocol, server))[:1]
    except (TimeoutError, OSError, TransactionError):
        return ()


def limit_retransmissions(sender: RTCRtpSender, now: Callable[[], float]) -> None:
    """Repeat lost packets at a pace that a narrow network survives.

    Receivers ask again for what is still on its way, and where packets overtake each other for what was never lost. A
    packet is repeated once in about a round trip, and all of them are a part of what is sent, as in libwebrtc.
    """
    retransmit: Any = sender._retransmit
    repeated: dict[int, float] = {}
    credit, counted = RETRANSMISSION_BURST, 0

    async def limited(sequence_number: int) -> None:
        nonlocal credit, counted
        sent: int = sender._RTCRtpSender__packet_count  # type: ignore[attr-defined]
        credit = min(RETRANSMISSION_BURST, credit + RETRANSMISSION_SHARE * (sent - counted))
        counted = sent
        at = now()
        if credit < 1 or at - repeated.get(sequence_number, -1.0) < RETRANSMISSION_SECONDS:
            return
        credit -= 1
        repeated.pop(sequence_number, None)
        repeated[sequence_number] = at  # the newest is the last
        while at - next(iter(repeated.values())) >= RETRANSMISSION_SECONDS:
            del repeated[next(iter(repeated))]
        await retransmit(sequence_number)

    sender._retransmit = limited  # type: ignore[method-assign]


def tap_rtcp(end: RTCRtpSender | RTCRtpReceiver, callback: Callable[[AnyRtcpPacket], None]) -> None:
    """Call `callback` with each RTCP packet for a sender or a receiver."""
    handle: Any = end._handle_rtcp_packet

    async def tapped(packet: AnyRtcpPacket) -> None:
        callback(packet)
        await handle(packet)

    end._handle_rtcp_packet = tapped  # type: ignore[method-assign]


def on_feedback(sender: RTCRtpSender, estimated: Callable[[float], None], reported: Callable[[float], None]) -> None:
    """Call back with what the receiver tells of the network.

    Args:
        sender: of the pictures.
        estimated: called with the bits a second that the receiver can get (REMB).
        reported: called with the part of the packets that was lost since the report before, 0 to 1.
    """

    def read(packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpRrPacket | RtcpSrPacket):
            for report in packet.reports:
                if report.ssrc == sender._ssrc:
                    reported(report.fraction_lost / 256)
        elif isinstance(packet, RtcpPsfbPacket) and packet.fmt == RTCP_PSFB_APP:
            with contextlib.suppress(ValueError):  # another application's
                bits_per_second, ssrcs = unpack_remb_fci(packet.fci)
                if sender._ssrc in ssrcs:
                    estimated(bits_per_second)

    tap_rtcp(sender, read)


class IceRestart:
    """Lets an ICE transport change to a new connection (RFC 8445, section 9) while DTLS and media go on.

    The old connection carries the media until the new one is established.

    Args:
        ice: the transport, which has not gathered candidates yet.
        ports: of its connections; None leaves the choice to aioice.
    """

    def __init__(self, ice: RTCIceTransport, ports: MediaPorts | None = None) -> None:
        self._ice = ice
        self._ports = ports
        self._active: Connection = ice._connection
        use_ports(self._active, ports)
        ice._recv = self._recv
        ice._send = self._send

    async def prepare(self, username: str, password: str) -> Connection:
        """Gather the candidates of a new connection to a client with these new credentials.

        Raises:
            NoPortError: there is none for it; the old connection stays in use.
        """
        await self._abandon()
        old = self._active
        new = Connection(
            ice_controlling=old.ice_controlling,
            stun_server=old.stun_server,
            turn_server=old.turn_server,
            turn_username=old.turn_username,
            turn_password=old.turn_password,
            turn_ssl=old.turn_ssl,
            turn_transport=old.turn_transport,
        )
        new.remote_is_lite = old.remote_is_lite
        new.remote_username, new.remote_password = username, password
        use_ports(new, self._ports)
        await new.gather_candidates()
        # From here on trickled candidates are for the new connection.
        self._ice._connection = self._ice.iceGatherer._connection = new
        self._ice.iceGatherer._remote_candidates_end = False
        return new

    async def complete(self, new: Connection) -> None:
        """Wait until the new connection is established, and hang up the old one.

        Raises:
            ConnectionError: the new connection cannot be established; the old one stays in use.
        """
        try:
            await new.connect()
        except BaseException:  # cancelled, too
            await new.close()
            if self._ice._connection is new:  # and not that of a later restart
                self._ice._connection = self._ice.iceGatherer._connection = self._active
            raise
        old, self._active = self._active, new
        # The monitor of the old connection would take its end for that of the transport.
        monitor = self._ice._RTCIceTransport__monitor_task  # type: ignore[attr-defined]
        monitor.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await monitor
        self._ice._RTCIceTransport__monitor_task = asyncio.ensure_future(self._ice._monitor())  # type: ignore[attr-defined]
        await old.close()

    async def _abandon(self) -> None:
        """End a restart that has not completed: another one replaces it."""
        if self._ice._connection is not self._active:
            await self._ice._connection.close()

    async def close(self) -> None:
        """End a connection that is about to be replaced; aiortc closes the newest one only."""
        if self._ice._connection is not self._active:
            await self._active.close()

    async def _recv(self) -> bytes:
        while True:
            connection = self._active
            try:
                return await connection.recv()
            except ConnectionError:
                if connection is self._active:
                    raise

    async def _send(self, data: bytes) -> None:
        await self._active.send(data)
