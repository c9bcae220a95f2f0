"""Rooms on the ZeroMQ sockets: only those that ask for it, each with its topics, and speech only with its token."""

import asyncio
import contextlib
from typing import Any

import numpy as np
import pytest
import zmq
import zmq.asyncio

from avatard.config import Server, Zmq
from avatard.gateways.zeromq import ZmqGateway
from avatard.protocols.messages import (
    EndOfUtterance,
    Interrupt,
    Speech,
    Topic,
    decode,
    encode,
    split,
    topic_of,
)
from tests.support.room_server import room_server
from tests.support.serving import config, until

SETTINGS = config(
    server=Server(port=0, token="s3cret"), zmq=Zmq(publish="tcp://127.0.0.1:*", audio="tcp://127.0.0.1:*")
)


@pytest.fixture
async def serving():
    async with room_server(SETTINGS) as found:
        gateway = ZmqGateway(SETTINGS.zmq)
        await gateway.start(found.server.room.session)
        found.rooms.guests.append(gateway)
        with contextlib.ExitStack() as stack:
            context = stack.enter_context(zmq.asyncio.Context())
            publisher, receiver = gateway.publisher, gateway.receiver
            assert publisher is not None and receiver is not None

            def subscribe(*topics: str) -> zmq.asyncio.Socket:
                socket = stack.enter_context(context.socket(zmq.SUB))
                socket.connect(publisher.endpoint)
                for topic in topics:
                    socket.subscribe(topic)
                return socket

            sender = stack.enter_context(context.socket(zmq.PUSH))
            sender.linger = 0
            sender.connect(receiver.endpoint)
            yield found, gateway, subscribe, sender
        await gateway.stop()


async def read(socket: zmq.asyncio.Socket) -> tuple[str, Any]:
    async with asyncio.timeout(30):
        topic, payload = split(await socket.recv_multipart())
    return topic, decode(payload)


def speech(**fields: Any) -> bytes:
    return encode(Speech(enc="f32le", sr=16_000, data=np.full(16_000, 0.3, "<f4").tobytes(), **fields))


async def test_a_room_that_asks_for_it_has_its_own_topics(serving):
    found, gateway, subscribe, _ = serving
    await found.keep("dark", 20)
    _, _, room = await found.create(identity="dark", zmq=True)
    _, _, hidden = await found.create()
    theirs = subscribe(*(topic_of(kind, room.name) for kind in (Topic.META, Topic.FACE, Topic.VIDEO)))
    seen: dict[str, Any] = {}
    while len(seen) < 3:
        topic, message = await read(theirs)
        seen[topic] = message
    assert set(seen) == {topic_of(kind, room.name) for kind in (Topic.META, Topic.FACE, Topic.VIDEO)}
    assert len({message.sid for message in seen.values()}) == 1
    assert seen[topic_of(Topic.META, room.name)].identity == room.session.generation.digest
    assert not hidden.session.playout.playing, "nobody may look at it"
    assert not found.server.room.session.playout.playing, "who names a room asks for no other"


async def test_who_subscribed_before_there_were_rooms_asks_for_none(serving):
    found, gateway, subscribe, _ = serving
    socket = subscribe("avatard/1/", Topic.FACE)
    _, _, room = await found.create(zmq=True)
    topics = {(await read(socket))[0] for _ in range(20)}
    assert topics <= {str(topic) for topic in Topic} and not room.session.playout.playing


async def test_who_asks_for_all_rooms_gets_the_later_ones_too_and_the_last_word(serving):
    found, gateway, subscribe, _ = serving
    socket = subscribe(f"{Topic.STATE}/")
    await until(lambda: gateway.publisher._prefixes)
    _, _, room = await found.create(zmq=True)
    topic, message = await read(socket)
    assert topic == topic_of(Topic.STATE, room.name) and message.state == "idle"
    await found.rooms.end(room.name, "test")
    while message.event != "stopped":
        topic, message = await read(socket)
    assert gateway.publisher._prefixes == {f"{Topic.STATE}/".encode()}


async def test_subscriptions_to_a_room_go_with_it(serving):
    found, gateway, subscribe, _ = serving
    _, _, room = await found.create(zmq=True)
    subscribe(topic_of(Topic.FACE, room.name), topic_of(Topic.FACE, "f" * 32))
    await until(lambda: gateway.publisher._prefixes == {topic_of(Topic.FACE, room.name).encode()})
    await until(lambda: room.session.playout.playing)
    await found.rooms.end(room.name, "test")
    assert gateway.publisher._prefixes == set()


async def test_speech_for_a_room_needs_its_token_and_is_heard_there_alone(serving):
    found, gateway, subscribe, sender = serving
    _, _, room = await found.create(zmq=True)
    _, _, hidden = await found.create()
    states = subscribe(Topic.STATE)
    await until(lambda: gateway.publisher.wanted(Topic.STATE))
    for wrong in (
        {"room": room.name},
        {"room": room.name, "token": "wrong"},
        {"room": "0" * 32, "token": room.token},
        {"room": hidden.name, "token": hidden.token},
        {"room": room.name, "token": "ä\ud800".encode(errors="surrogatepass").decode(errors="replace")},
    ):
        await sender.send(speech(id="w", **wrong))
        _, state = await read(states)
        while state.event != "error":
            _, state = await read(states)
        assert (state.code, state.id) == ("unauthorized", "w")
    key = {"room": room.name, "token": room.token}
    told: list[str] = []
    room.session.listen(lambda event: told.append(event.TYPE))
    others: list[str] = []
    for session in (found.server.room.session, hidden.session):
        session.listen(lambda event: others.append(event.TYPE))
    await sender.send(speech(id="a", **key))
    await sender.send(encode(EndOfUtterance(id="a", **key)))
    await until(lambda: "bot-started-speaking" in told)
    await sender.send(encode(Interrupt(**key)))
    await until(lambda: "bot-interrupted" in told)
    assert not others


async def test_a_room_with_minutes_of_speech_holds_nobody_up(serving, monkeypatch):
    monkeypatch.setattr("avatard.gateways.zeromq.MAX_WAITING_SECONDS", 0.5)
    found, gateway, subscribe, sender = serving
    _, _, room = await found.create(zmq=True)
    states = subscribe(topic_of(Topic.STATE, room.name))
    await until(lambda: gateway.publisher._prefixes)
    room.session.turns.claim_floor(room.session.open_microphone(), pushed=True)  # another speaks
    monkeypatch.setattr(type(room.session.turns), "claim_floor", lambda *_, **__: False)
    for number in range(3):
        await sender.send(speech(id=str(number), room=room.name, token=room.token))
    _, state = await read(states)
    while state.event != "error":
        _, state = await read(states)
    assert state.code == "full"
    await until(lambda: gateway.receiver.received["Speech"] == 3)


def test_requests_to_the_default_room_are_what_they_were():
    assert b"room" not in encode(Interrupt()) and b"token" not in encode(Interrupt())
