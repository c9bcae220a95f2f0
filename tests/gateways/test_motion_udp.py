"""The face over UDP: to receivers that listen, that vanish, that come back, and that never were."""

import asyncio
import logging
import socket
from contextlib import asynccontextmanager, closing

import pytest

from avatard.config import Engines
from avatard.gateways.motion_udp import MotionGateway, Target, UdpSender
from avatard.protocols.network import TargetError
from tests.support.serving import beeps, config, running_session, said, until
from tests.support.trackers import LiveLinkFrame, OpenSeeFace, VmcModel, face

RETRY_SECONDS = 0.01


class Receiver:
    """A program that listens on UDP."""

    def __init__(self, port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", port))
        self._socket.setblocking(False)
        self.port = self._socket.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.packets: list[bytes] = []

    def read(self) -> list[bytes]:
        while True:
            try:
                self.packets.append(self._socket.recv(4096))
            except BlockingIOError:
                return self.packets

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def receiver():
    with closing(Receiver()) as listening:
        yield listening


def closed_port() -> int:
    with closing(Receiver()) as listening:
        return int(listening.port)


def sender(port, encode=lambda motion: [b"face"], host="127.0.0.1", probe=face, on_change=lambda: None):
    return UdpSender(Target("vmc", host, port), encode, probe, on_change, RETRY_SECONDS)


@asynccontextmanager
async def running(sending):
    task = asyncio.create_task(sending.run())
    try:
        yield sending
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        sending.close()


async def test_a_session_is_sent_to_all_three_kinds():
    with closing(Receiver()) as vmc, closing(Receiver()) as live_link, closing(Receiver()) as open_see:
        engines = Engines((vmc.address,), "arkit", (live_link.address,), "Ava", (open_see.address,))
        settings = config(engines=engines)
        gateway = MotionGateway(settings.engines, RETRY_SECONDS)
        async with running_session(settings) as session:
            gateway.start(session)
            session.open_speaker().push_audio(beeps(2), 16_000)
            await until(lambda: min(len(each.read()) for each in (vmc, live_link, open_see)) > 50)
            await gateway.stop()
            assert gateway not in session.playout.sinks
        frames = [LiveLinkFrame.of(packet) for packet in live_link.packets]
        assert {frame.subject for frame in frames} == {"Ava"}
        played = [frame.frame for frame in frames[1:]]  # after the one that asked whether anybody listens
        assert played == sorted(set(played))
        assert max(frame.values[17] for frame in frames) > 0.5  # the jaw opens as loud as it is
        times = [OpenSeeFace.of(packet).time for packet in open_see.packets]
        assert times == sorted(times)
        applied = VmcModel.of(vmc.packets)
        assert len(applied.shown) == 52 and applied.available


async def test_nothing_is_generated_for_a_closed_port_and_a_late_receiver_gets_it(caplog):
    caplog.set_level(logging.INFO, "avatard")
    port = closed_port()
    settings = config(engines=Engines(vmc=(f"127.0.0.1:{port}",)))
    gateway = MotionGateway(settings.engines, RETRY_SECONDS)
    async with running_session(settings) as session:
        gateway.start(session)
        await until(lambda: "no receiver; trying again" in said(caplog))
        assert not session.playout.sinks
        with closing(Receiver(port)) as late:
            await until(lambda: len(late.read()) > 3)
            assert gateway in session.playout.sinks
        await until(lambda: gateway not in session.playout.sinks)
        with closing(Receiver(port)) as again:
            await until(lambda: len(again.read()) > 3)
        await gateway.stop()
    told = [name for name in said(caplog) if name in ("no receiver; trying again", "sending")]
    assert told[:4] == ["no receiver; trying again", "sending", "no receiver; trying again", "sending"]


async def test_many_tries_are_one_line(caplog):
    tries = []

    def probe():
        tries.append(1)
        return face()

    async with running(sender(closed_port(), probe=probe)) as sending:
        await until(lambda: len(tries) > 2)
        assert not sending.live
    assert said(caplog) == ["no receiver; trying again"]
    assert caplog.records[-1].reason == "nobody listens"


async def test_a_name_that_cannot_be_resolved_is_one_line_and_tried_again(caplog, monkeypatch, receiver):
    asked = []
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    async def getaddrinfo(host, port, **options):
        asked.append(host)
        if len(asked) < 4:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return await resolve("127.0.0.1", port, **options)

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    async with running(sender(receiver.port, host="studio.invalid")) as sending:
        await until(lambda: sending.live)
    assert asked == ["studio.invalid"] * 4
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [(record.getMessage(), record.reason) for record in warnings if record.name.startswith("avatard")] == [
        ("no receiver; trying again", "Name or service not known")
    ]


async def test_a_full_queue_drops_a_frame_instead_of_waiting(receiver):
    async with running(sender(receiver.port)) as sending:
        await until(lambda: sending.live)

        class Full:
            def send(self, datagram):
                raise BlockingIOError

            def close(self):
                pass

        opened, sending._socket = sending._socket, Full()
        sending.send(face())
        assert (sending.sent, sending.dropped, sending.live) == (0, 1, True)
        opened.close()


async def test_a_receiver_that_is_lost_is_told_of_once():
    changes = []
    listening = Receiver()
    async with running(sender(listening.port, on_change=lambda: changes.append(1))) as sending:
        await until(lambda: sending.live)
        listening.close()
        for _ in range(20):  # the refusal of one packet is reported by the next
            sending.send(face())
        assert not sending.live and len(changes) == 2
        sending.send(face())


async def test_without_receivers_there_is_nothing_to_do():
    gateway = MotionGateway(Engines())
    assert gateway.senders == []
    await gateway.stop()


def test_a_malformed_receiver_is_refused_before_the_networks_are_loaded():
    with pytest.raises(TargetError, match="'nowhere:x' is no receiver"):
        MotionGateway(Engines(livelink=("nowhere:x",)))
