"""Ports from a range and announced addresses: what answers say, and what happens when all are taken."""

import re
import socket
from typing import Any

import aiohttp
import pytest
from aioice.ice import get_host_addresses
from aiortc import RTCSessionDescription

from avatard.clock import monotonic
from avatard.config import Server, Webrtc
from avatard.protocols.broadcast import Broadcaster, Encoding
from avatard.protocols.media_ports import MediaPorts, NoPortError
from avatard.protocols.offer import parse_fragment
from avatard.protocols.peer import IceServers, Peer
from tests.protocols.test_peer import Viewer
from tests.support.paths import ROOT
from tests.support.serving import config, running_server, until
from tests.support.webrtc import RecordingHandler

ANNOUNCED = ("203.0.113.5", "2001:db8::5")


def free_ports(number: int) -> range:
    """So many consecutive ports that nobody has now."""
    for first in range(41_000, 60_000, number):
        ports = range(first, first + number)
        try:
            for port in ports:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return ports
    raise AssertionError("no ports")


def told(answer: str) -> list[tuple[str, int]]:
    """Addresses and ports of an answer's candidates."""
    return [
        (address, int(port)) for address, port in re.findall(r"(?m)^a=candidate:\S+ \S+ \S+ \S+ (\S+) (\d+) ", answer)
    ]


@pytest.fixture
async def broadcaster():
    found = Broadcaster(Encoding(), monotonic)
    yield found
    await found.close()


async def answered(broadcaster: Broadcaster, ports: MediaPorts) -> tuple[Peer, Viewer, str]:
    peer, viewer = Peer(broadcaster, IceServers(), RecordingHandler(), ports=ports), Viewer("video", "audio")
    try:
        return peer, viewer, await peer.answer(await viewer.offer())
    except NoPortError:
        await viewer.close()
        raise


async def test_answers_tell_the_announced_addresses_and_a_port_of_the_range(broadcaster):
    ports = free_ports(4)
    peer, viewer, answer = await answered(broadcaster, MediaPorts(ports, ANNOUNCED))
    addresses, (port, *others) = zip(*told(answer), strict=True)
    assert set(addresses) == set(ANNOUNCED) and port in ports and set(others) == {port}
    own = get_host_addresses(True, True)
    assert own and not any(address in answer for address in own)
    await viewer.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    await until(lambda: viewer.pc.connectionState == "connected")  # although nobody here has these addresses
    await peer.close()
    await viewer.close()


async def test_a_client_has_one_port_on_every_address_of_this_machine(broadcaster):
    ports = free_ports(2)
    peer, viewer, answer = await answered(broadcaster, MediaPorts(ports))
    addresses, found = zip(*told(answer), strict=True)
    assert set(addresses) <= set(get_host_addresses(True, True)) and len(set(found)) == 1 and found[0] in ports
    await viewer.close()
    await peer.close()


async def test_without_a_range_the_system_chooses_the_port(broadcaster):
    peer, viewer, answer = await answered(broadcaster, MediaPorts(announced=ANNOUNCED[:1]))
    ((address, port),) = set(told(answer))
    assert address == ANNOUNCED[0] and port >= 1024
    await viewer.close()
    await peer.close()


async def test_when_all_ports_are_taken_the_next_client_is_refused_and_nobody_is_dropped(broadcaster):
    ports = MediaPorts(free_ports(2))
    clients = [await answered(broadcaster, ports) for _ in range(2)]
    with pytest.raises(NoPortError, match=r"^all 2 UDP ports from \d+ on are taken; try again in 10 s$"):
        await answered(broadcaster, ports)
    assert not any(peer.closed for peer, _, _ in clients) and len(broadcaster.tracks) == 4
    await clients[0][0].close()
    clients.append(await answered(broadcaster, ports))
    assert told(clients[-1][2])[0][1] == told(clients[0][2])[0][1]
    for peer, viewer, _ in clients:
        await viewer.close()
        await peer.close()


async def test_an_ice_restart_without_a_port_keeps_the_old_path(broadcaster):
    peer, viewer, answer = await answered(broadcaster, MediaPorts(free_ports(1)))
    await viewer.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    await until(lambda: viewer.pc.connectionState == "connected" == peer._pc.connectionState)
    with pytest.raises(NoPortError, match=r"^UDP port \d+ is taken"):
        await peer.restart_ice(parse_fragment("a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\n"))
    assert viewer.pc.connectionState == "connected" and not peer.closed
    await viewer.close()
    await peer.close()


async def test_addresses_that_cannot_be_bound_are_left_out():
    (bound,) = MediaPorts(free_ports(1)).bind(["127.0.0.1", "192.0.2.1"])
    assert bound.getsockname()[0] == "127.0.0.1"
    bound.close()


async def test_the_server_answers_503_in_one_line(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    ports = free_ports(1)
    webrtc = Webrtc(udp_ports=f"{ports[0]}-{ports[-1]}", announce=ANNOUNCED[:1])
    settings = config(server=Server(port=0, max_sessions=2), webrtc=webrtc)
    first, second = Viewer("video"), Viewer("video")

    async def post(http: Any, url: str, viewer: Viewer) -> tuple[int, str, Any]:
        headers = {"Content-Type": "application/sdp"}
        async with http.post(f"{url}/whep", data=await viewer.offer(), headers=headers) as response:
            return response.status, await response.text(), response.headers

    async with running_server(settings) as (session, url), aiohttp.ClientSession() as http:
        status, answer, _ = await post(http, url, first)
        assert status == 201 and set(told(answer)) == {(ANNOUNCED[0], ports[0])}
        await first.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await until(lambda: first.kinds)
        status, text, headers = await post(http, url, second)
        assert status == 503 and headers["Retry-After"] == "10" and "\n" not in text and '"no-port"' in text
        offer = {"sdp": second.pc.localDescription.sdp, "type": "offer"}
        async with http.post(f"{url}/api/offer", json=offer) as response:
            assert response.status == 503 and (await response.json())["code"] == "no-port"
        assert first.pc.connectionState == "connected"
        assert b'avatard_sessions{kind="whep"} 1.0' in session.metrics.text()
        assert b'avatard_sessions{kind="page"} 0.0' in session.metrics.text()
    await first.close()
    await second.close()
