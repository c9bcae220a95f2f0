"""A real session with the test engine behind the two sockets."""

import asyncio
import contextlib
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import zmq
import zmq.asyncio

from avatard.config import Config, Picture, Stream, Zmq
from avatard.gateways.zeromq import ZmqGateway
from avatard.models.face.arkit import ARKIT_NAMES
from avatard.portrait import Portrait
from avatard.protocols import messages
from avatard.protocols.curve import KeysError, create_keys
from avatard.protocols.endpoint import EndpointError
from avatard.protocols.messages import EndOfUtterance, Interrupt, Speech, State, Topic, decode, encode, floats, split
from avatard.session.session import Session
from tests.support.paths import ROOT
from tests.support.warp_engine import ALPHA, SIZE

CONFIG = Config(
    stream=Stream(hop_frames=4, fade_frames=1, clip_frames=8),
    # A machine that stalls for a second publishes 25 frames at once; here none may be lost.
    zmq=Zmq(publish="tcp://127.0.0.1:*", audio="tcp://127.0.0.1:*", send_queue_messages=1000),
)


@pytest.fixture
async def avatar(tmp_path, monkeypatch):
    """The session, its gateway, a subscriber to everything and a sender."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    face = tmp_path / "face.png"
    cv2.imwrite(str(face), np.full((300, 200, 3), (10, 120, 230), np.uint8))
    session = Session(CONFIG, Portrait.read(face), "tests.support.warp_engine:make")
    await session.start()
    gateway = ZmqGateway(CONFIG.zmq)
    await gateway.start(session)
    assert gateway.publisher and gateway.receiver
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.asyncio.Context())
        subscriber = stack.enter_context(context.socket(zmq.SUB))
        subscriber.connect(gateway.publisher.endpoint)
        sender = stack.enter_context(context.socket(zmq.PUSH))
        sender.linger = 0
        sender.connect(gateway.receiver.endpoint)
        yield session, subscriber, sender
    await gateway.stop()
    await session.stop()


class Fresh:
    """A sink that knows which frames were there in time: on a busy machine a picture may be shown twice."""

    def __init__(self) -> None:
        self.pts: set[int] = set()

    def play(self, entry):
        if not entry.repeated:
            self.pts.add(entry.index * 40_000)


async def read(subscriber, enough):
    """Messages by topic until `enough` says so."""
    seen: dict[str, list[Any]] = {topic: [] for topic in Topic}
    async with asyncio.timeout(60):
        while not enough(seen):
            topic, payload = split(await subscriber.recv_multipart())
            seen[topic].append(decode(payload))
    return seen


def events(seen):
    return [state.event for state in seen[Topic.STATE] if state.event != "snapshot"]


def tone(seconds, rate=16_000, encoding="pcm_s16le", channels=1):
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate).repeat(channels)
    data = (wave * 32767).astype("<i2").tobytes() if encoding == "pcm_s16le" else wave.astype("<f4").tobytes()
    return Speech(enc=encoding, sr=rate, ch=channels, data=data, id="t")


async def say(sender, speech, chunk=1920):
    for start in range(0, len(speech.data), chunk):
        part = Speech(enc=speech.enc, sr=speech.sr, ch=speech.ch, data=speech.data[start : start + chunk], id=speech.id)
        await sender.send(encode(part))


@pytest.mark.parametrize("speech", [tone(1), tone(1, 48_000, "f32le", 2), tone(1, 8_000)], ids=["16k", "48k-f32", "8k"])
async def test_what_is_sent_is_spoken_and_published_in_step(avatar, speech):
    session, subscriber, sender = avatar
    fresh = Fresh()
    session.attach(fresh)
    subscriber.subscribe("")
    await read(subscriber, lambda seen: seen[Topic.FACE])
    await say(sender, speech)
    await sender.send(encode(EndOfUtterance()))
    seen = await read(subscriber, lambda seen: "stopped-speaking" in events(seen) and seen[Topic.STATS])

    assert [event for event in events(seen) if event != "utterance"] == ["started-speaking", "stopped-speaking"]
    for kind in (Topic.FACE, Topic.AUDIO, Topic.VIDEO):
        pts = [message.pts_us for message in seen[kind]]
        assert np.diff(pts).tolist() == [40_000] * (len(pts) - 1)
    faces = {face.pts_us: face for face in seen[Topic.FACE]}
    sound = {audio.pts_us: np.frombuffer(audio.data, "<i2") / 32768 for audio in seen[Topic.AUDIO]}
    both = sorted(faces.keys() & sound.keys())
    spoken = sum(np.sqrt(np.mean(sound[pts] ** 2)) > 0.1 for pts in both)
    assert 0.9 < spoken / 25 < 1.1
    assert any(faces[pts].speaking for pts in both)
    both = sorted(fresh.pts & set(both))
    jaw = np.array([floats(faces[pts].bs)[ARKIT_NAMES.index("jawOpen")] for pts in both])
    loud = np.array([np.sqrt(np.mean(sound[pts] ** 2)) for pts in both])
    # The test engine's mouth opens as far as that very frame's sound is loud. (Pictures made again by a session that
    # had to catch up are blended with those before.)
    assert np.mean(np.abs(jaw - np.minimum(4 * loud, 1)) < 0.02) > 0.9
    assert seen[Topic.STATS][-1].values["zmq_received_speech"] > 5


async def test_a_transparent_avatar_is_published_with_alpha(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    face = tmp_path / "face.png"
    cv2.imwrite(str(face), np.full((200, 200, 3), (10, 120, 230), np.uint8))
    config = msgspec.structs.replace(CONFIG, picture=Picture(background="transparent"))
    session = Session(config, Portrait.read(face), "tests.support.warp_engine:make")
    await session.start()
    gateway = ZmqGateway(config.zmq)
    await gateway.start(session)
    assert gateway.publisher
    with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.connect(gateway.publisher.endpoint)
        subscriber.subscribe("avatard/1/meta")
        subscriber.subscribe("avatard/1/video")
        seen = await read(subscriber, lambda seen: seen[Topic.META] and len(seen[Topic.VIDEO]) > 20)
    for message in (seen[Topic.META][0], seen[Topic.VIDEO][-1]):
        assert (message.enc, message.ch, message.w, message.h) == ("rgba32", 4, SIZE, SIZE)
    rgba = np.frombuffer(seen[Topic.VIDEO][-1].data, np.uint8).reshape(SIZE, SIZE, 4)
    np.testing.assert_array_equal(rgba[..., 3], ALPHA)
    assert (rgba[100, 100, :3] == (230, 120, 10)).all()
    await gateway.stop()
    await session.stop()


async def test_nothing_is_generated_for_nobody(avatar):
    session, subscriber, _ = avatar
    subscriber.subscribe(Topic.META)
    meta = (await read(subscriber, lambda seen: seen[Topic.META]))[Topic.META][0]
    assert (meta.arkit, meta.w, meta.h, meta.identity) == (list(ARKIT_NAMES), 256, 256, session.generation.digest)
    await asyncio.sleep(0.2)
    assert session.scheduler.counters.played == 0
    subscriber.subscribe(Topic.FACE)
    await read(subscriber, lambda seen: len(seen[Topic.FACE]) > 5)
    subscriber.unsubscribe(Topic.FACE)
    await asyncio.sleep(0.3)
    played = session.scheduler.counters.played
    await asyncio.sleep(0.3)
    assert session.scheduler.counters.played == played


def utterances(seen):
    return [(state.id, state.utterance.state) for state in seen[Topic.STATE] if state.event == "utterance"]


async def test_an_interrupt_stops_speech_that_still_waits_to_be_accepted(avatar):
    session, subscriber, sender = avatar
    subscriber.subscribe("")
    for _ in range(6):  # a minute: more than the session's buffer takes
        await say(sender, tone(10), chunk=32_000)
    await read(subscriber, lambda seen: "started-speaking" in events(seen))
    await sender.send(encode(Interrupt(id="stop it")))
    seen = await read(subscriber, lambda seen: ("t", "ended") in utterances(seen))
    interrupted = next(state for state in seen[Topic.STATE] if state.event == "interrupted")
    assert interrupted.id == "stop it" and interrupted.state == "idle"
    ended = next(state.utterance for state in seen[Topic.STATE] if state.utterance and state.utterance.state == "ended")
    assert ended.interrupted and ended.played_ms + ended.dropped_ms == pytest.approx(60_000, abs=2)
    seen = await read(subscriber, lambda seen: len(seen[Topic.AUDIO]) > 25)
    silent = [a for a in seen[Topic.AUDIO] if a.pts_us > interrupted.played_us + 40_000]
    assert silent and not any(np.frombuffer(a.data, "<i2").any() for a in silent)

    await say(sender, tone(0.5))
    await sender.send(encode(EndOfUtterance(id="t")))
    seen = await read(subscriber, lambda seen: ("t", "ended") in utterances(seen))
    assert "started-speaking" in events(seen)


async def test_an_interrupt_by_somebody_else_drops_the_rest_of_the_utterance(avatar):
    session, subscriber, sender = avatar
    subscriber.subscribe("")
    for _ in range(6):
        await say(sender, tone(10), chunk=32_000)
    await read(subscriber, lambda seen: "started-speaking" in events(seen))
    session.interrupt()
    await sender.send(encode(EndOfUtterance(id="t")))
    await read(subscriber, lambda seen: "stopped-speaking" in events(seen))
    assert not session.scheduler.buffered_samples

    await say(sender, tone(0.5))
    await sender.send(encode(EndOfUtterance(id="t")))
    await read(subscriber, lambda seen: "started-speaking" in events(seen))


async def test_each_utterance_is_told_by_name_also_an_empty_one(avatar):
    _, subscriber, sender = avatar
    subscriber.subscribe(Topic.STATE)
    await read(subscriber, lambda seen: seen[Topic.STATE])
    for name in ("a", "b"):
        await sender.send(encode(Speech(enc="pcm_s16le", sr=16_000, data=tone(0.3).data, id=name)))
        await sender.send(encode(EndOfUtterance(id=name)))
    await sender.send(encode(EndOfUtterance(id="empty")))
    seen = await read(subscriber, lambda seen: ("empty", "ended") in utterances(seen))
    for name in ("a", "b", "empty"):
        states = [state for which, state in utterances(seen) if which == name]
        assert states == ["queued", "started", "ended"]


async def test_a_portrait_is_swapped_or_refused(avatar):
    session, subscriber, sender = avatar
    before = session.generation.digest
    subscriber.subscribe("")
    _, png = cv2.imencode(".png", np.full((256, 256, 3), (200, 30, 20), np.uint8))
    await sender.send(encode(messages.Portrait(data=png.tobytes(), id="new")))
    seen = await read(subscriber, lambda seen: "identity" in events(seen) and len(seen[Topic.META]) > 1)
    answer: State = next(state for state in seen[Topic.STATE] if state.event == "identity")
    assert answer.id == "new"
    assert seen[Topic.META][-1].identity == session.generation.digest != before
    await read(subscriber, lambda seen: seen[Topic.VIDEO] and red(seen[Topic.VIDEO][-1]))

    await sender.send(encode(messages.Portrait(data=b"no picture", id="bad")))
    seen = await read(subscriber, lambda seen: "error" in events(seen))
    refusal: State = next(state for state in seen[Topic.STATE] if state.event == "error")
    assert refusal.id == "bad" and "not a picture" in refusal.message


def red(video):
    picture = np.asarray(cv2.imdecode(np.frombuffer(video.data, np.uint8), cv2.IMREAD_COLOR))
    return np.abs(picture[10, 10].astype(int) - (200, 30, 20)).max() < 12


async def test_speech_waits_until_another_speaker_has_said_all(avatar):
    session, subscriber, sender = avatar
    subscriber.subscribe(Topic.STATE)
    await read(subscriber, lambda seen: seen[Topic.STATE])
    other = session.open_speaker()
    other.begin("other")
    other.push_audio(tone(1).samples(), 16_000)
    await say(sender, tone(0.5))
    await sender.send(encode(EndOfUtterance(id="t")))
    await read(subscriber, lambda seen: ("t", "queued") in utterances(seen))
    other.flush()
    seen = await read(subscriber, lambda seen: ("t", "ended") in utterances(seen))
    assert [told for told in utterances(seen) if told[1] != "queued"] == [
        ("other", "started"), ("other", "ended"), ("t", "started"), ("t", "ended"),
    ]  # fmt: skip
    assert "error" not in events(seen)


async def test_a_malformed_request_is_answered_by_its_id(avatar):
    _, subscriber, sender = avatar
    subscriber.subscribe(Topic.STATE)
    await read(subscriber, lambda seen: seen[Topic.STATE])
    await sender.send(msgspec.msgpack.encode({"t": "audio", "id": "q7", "sr": "loud"}))
    seen = await read(subscriber, lambda seen: "error" in events(seen))
    error = next(state for state in seen[Topic.STATE] if state.event == "error")
    assert error.id == "q7" and "expected enc pcm_s16le or f32le, sr 8000 to 192000" in error.message and error.code


async def test_a_file_instead_of_samples_is_refused_to_its_end(avatar):
    _, subscriber, sender = avatar
    subscriber.subscribe(Topic.STATE)
    await read(subscriber, lambda seen: seen[Topic.STATE])
    for data in (b"OggS....", b"\x7f\x7f" * 1600):
        await sender.send(encode(Speech(enc="pcm_s16le", sr=16_000, data=data, id="file")))
    await sender.send(encode(Speech(enc="pcm_s16le", sr=16_000, data=b"\x7f\x7f" * 1600, id="samples")))
    await sender.send(encode(EndOfUtterance()))
    seen = await read(subscriber, lambda seen: said(seen) and said(seen)[-1][0] == "samples")
    assert said(seen) == [("file", 0), ("samples", 100)]
    (error,) = (state for state in seen[Topic.STATE] if state.event == "error")
    assert error.id == "file" and "got an Ogg file" in error.message


def said(seen):
    """Ids of the utterances that ended, and how many milliseconds of them were played."""
    told = [(state.id, state.utterance) for state in seen[Topic.STATE] if state.event == "utterance"]
    return [(name, utterance.played_ms) for name, utterance in told if utterance.state == "ended"]


async def test_two_thousand_malformed_requests_leave_the_avatar_speaking(avatar):
    session, subscriber, sender = avatar
    subscriber.subscribe("")
    random = np.random.default_rng(0)
    for _ in range(2000):
        await sender.send(random.bytes(int(random.integers(0, 100))))
    await say(sender, tone(0.5))
    seen = await read(subscriber, lambda seen: "started-speaking" in events(seen) and seen[Topic.STATS])
    assert "error" in events(seen)
    assert session.ready


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        (Zmq(publish="tcp://0.0.0.0:5556"), EndpointError, "reachable from other machines"),
        (Zmq(audio="tcp://*:5557"), EndpointError, "reachable from other machines"),
        (Zmq(publish="5556"), EndpointError, "no ZeroMQ endpoint"),
        (Zmq(secret_key_file="/nowhere"), KeysError, "cannot read the key file"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_starts(config, error, text):
    with pytest.raises(error, match=text):
        ZmqGateway(config)


def test_keys_open_other_addresses(tmp_path):
    _, secret, _ = create_keys(tmp_path, "server")
    ZmqGateway(Zmq(publish="tcp://0.0.0.0:5556", secret_key_file=str(secret)))
