"""Every utterance is told once, whole and in order, on every channel, whoever says it."""

import asyncio
import json
import wave
from typing import Any

import aiohttp
import numpy as np
import pytest
import zmq
import zmq.asyncio

from avatard.config import Zmq
from avatard.gateways.http import Server
from avatard.gateways.local import speak_file
from avatard.gateways.zeromq import ZmqGateway
from avatard.media.pcm import to_pcm16
from avatard.protocols.messages import EndOfUtterance, Speech, Topic, decode, encode, split
from tests.support.paths import ROOT
from tests.support.serving import beeps, config, running_session, until

SETTINGS = config(zmq=Zmq(publish="tcp://127.0.0.1:*", audio="tcp://127.0.0.1:*"))
Told = list[dict[str, Any]]


@pytest.fixture
async def avatar(monkeypatch):
    """The session, its URL, a sender to its ZeroMQ input, and what each channel tells of utterances."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    from aiortc import RTCPeerConnection, RTCSessionDescription

    channels: dict[str, Told] = {"websocket": [], "data channel": [], "zeromq": []}

    def hear(channel: str, message: dict[str, Any]) -> None:
        if message["type"] == "utterance":
            channels[channel].append(message["data"])

    async with running_session(SETTINGS) as session, aiohttp.ClientSession() as http:
        server, gateway = Server(SETTINGS, session), ZmqGateway(SETTINGS.zmq)
        url = (await server.start()).rstrip("/")
        await gateway.start(session)
        assert gateway.publisher and gateway.receiver
        context = zmq.asyncio.Context()
        subscriber, sender = context.socket(zmq.SUB), context.socket(zmq.PUSH)
        sender.linger = 0
        subscriber.connect(gateway.publisher.endpoint)
        subscriber.subscribe("avatard/1/state")
        sender.connect(gateway.receiver.endpoint)
        peer = RTCPeerConnection()
        peer.addTransceiver("audio", direction="sendonly")  # a speaker of WHIP
        events = peer.createDataChannel("events")
        events.on("message", lambda text: hear("data channel", json.loads(text)))
        await peer.setLocalDescription(await peer.createOffer())
        sdp, kind = peer.localDescription.sdp, {"Content-Type": "application/sdp"}
        async with http.post(f"{url}/whip", data=sdp, headers=kind) as response:
            await peer.setRemoteDescription(RTCSessionDescription(await response.text(), "answer"))
        await until(lambda: events.readyState == "open")
        listener = await http.ws_connect(f"{url}/ws/audio")

        async def listen() -> None:
            async for message in listener:
                hear("websocket", message.json())

        async def subscribe() -> None:
            while True:
                state: Any = decode(split(await subscriber.recv_multipart())[1])
                if state.event == "utterance":
                    told = {"id": state.id, "state": state.utterance.state}
                    if told["state"] == "ended":
                        for name in ("played_ms", "dropped_ms", "interrupted"):
                            told[name] = getattr(state.utterance, name)
                    channels["zeromq"].append(told)

        tasks = [asyncio.create_task(listen()), asyncio.create_task(subscribe())]
        publisher = gateway.publisher
        await until(lambda: publisher.wanted(Topic.STATE))
        yield session, url, http, sender, channels
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await listener.close()
        await peer.close()
        await gateway.stop()
        await server.stop()
        context.destroy(linger=0)


def said(told: Told) -> dict[str, Told]:
    """What was told, by utterance, in the order of the ends."""
    names = [event["id"] for event in told if event["state"] == "ended"]
    return {name: [event for event in told if event["id"] == name] for name in names}


async def test_every_channel_tells_the_same_of_every_sender(avatar, tmp_path):
    session, url, http, sender, channels = avatar
    voice = to_pcm16(beeps(0.4)).tobytes()
    path = tmp_path / "empty.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))

    async def ended(count: int) -> None:
        await until(lambda: all(len(said(told)) == count for told in channels.values()))

    async with http.ws_connect(f"{url}/ws/audio") as socket:
        await socket.send_json({"sample_rate": 16_000})
        for name, data in (("ws", voice), ("ws-empty", b""), ("ws-silent", bytes(6400))):
            await socket.send_json({"type": "start_of_utterance", "id": name})
            await socket.send_bytes(data)
            await socket.send_json({"type": "end_of_utterance"})
        await ended(3)
        for name, data in (("zmq", voice), ("zmq-empty", b""), ("zmq-silent", bytes(6400))):
            if data:
                await sender.send(encode(Speech(enc="pcm_s16le", sr=16_000, data=data, id=name)))
            await sender.send(encode(EndOfUtterance(id=name)))
        await ended(6)
        await speak_file(session, path)
        await ended(7)
        await socket.send_json({"type": "start_of_utterance", "id": "cut"})
        await socket.send_bytes(to_pcm16(np.concatenate([beeps(4)] * 2)).tobytes())
        await socket.send_json({"type": "end_of_utterance"})
        await socket.send_json({"type": "start_of_utterance", "id": "never-heard"})
        await socket.send_bytes(voice)
        await until(lambda: any(event["id"] == "cut" and event["state"] == "started" for event in channels["zeromq"]))
        session.interrupt()
        await ended(9)
    told = said(channels["websocket"])
    for channel in channels.values():
        assert said(channel) == told
    assert all([event["state"] for event in events] == ["queued", "started", "ended"] for events in told.values())
    ends = [events[-1] for events in told.values()]
    assert [(end["played_ms"], end["dropped_ms"], end["interrupted"]) for end in ends[:7]] == [
        (400, 0, False), (0, 0, False), (200, 0, False),
        (400, 0, False), (0, 0, False), (200, 0, False),
        (0, 0, False),
    ]  # fmt: skip
    cut, never = ends[7:]
    assert cut["interrupted"] and 0 < cut["played_ms"] < 8000 and cut["played_ms"] + cut["dropped_ms"] == 8000
    assert (never["played_ms"], never["dropped_ms"], never["interrupted"]) == (0, 400, True)
