"""The sockets with real peers: subscribers that stall and die, senders that send rubbish, keys that do not fit."""

import asyncio
import contextlib
import sys

import msgspec
import numpy as np
import psutil
import pytest
import zmq
import zmq.asyncio

from avatard.protocols.curve import create_keys, load_server_keys, set_client_keys
from avatard.protocols.endpoint import EndpointError
from avatard.protocols.image import ImageFormat
from avatard.protocols.messages import (
    EndOfUtterance,
    Head,
    Meta,
    Portrait,
    Speech,
    State,
    Topic,
    Video,
    decode,
    encode,
    floats,
    split,
)
from avatard.protocols.tasks import cancel_and_wait
from avatard.protocols.zmq_sockets import Publisher, Receiver, Stamp

META = Meta(server="test", identity="0" * 8, fps=25, enc="jpeg", w=64, h=48, sr=16_000, arkit=["jawOpen"])
HEAD = Head(q=(0, 0, 0, 1), t=(0, 0, 0), s=70)
LANDMARKS = np.arange(204, dtype=np.float32).reshape(68, 3)
BLENDSHAPES = np.linspace(0, 1, 52, dtype=np.float32)
PICTURE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
LOOPBACK = "tcp://127.0.0.1:*"
SECOND_OF_SOUND = Speech(enc="pcm_s16le", sr=8_000, data=bytes(16_000))


def publisher(**options):
    endpoint = options.pop("endpoint", LOOPBACK)
    return Publisher(endpoint, sid="s1", meta=META, now=lambda: Stamp(7, 8), **options)


def receiver(**options):
    return Receiver(LOOPBACK, **options)


def publish(publisher, frame):
    stamp = Stamp(frame * 40_000, 1_000_000 + frame * 40_000)
    publisher.face(stamp, LANDMARKS + frame, BLENDSHAPES, HEAD, speaking=True)
    publisher.audio(stamp, np.full(640, frame, np.int16), 16_000)
    publisher.video(stamp, PICTURE)


@pytest.fixture
def client():
    """Sockets of other programs, closed at the end of the test."""
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.asyncio.Context())

        def create(socket_type):
            socket = stack.enter_context(context.socket(socket_type))
            socket.linger = 0
            return socket

        yield create


@pytest.fixture
def subscribe(client):
    def connect(endpoint, *prefixes, queue=1000):
        socket = client(zmq.SUB)
        socket.rcvhwm = queue
        for prefix in prefixes or [""]:
            socket.subscribe(prefix)
        socket.connect(endpoint)
        return socket

    return connect


@pytest.fixture
def push(client):
    def connect(endpoint):
        socket = client(zmq.PUSH)
        socket.connect(endpoint)
        return socket

    return connect


async def receive(socket):
    async with asyncio.timeout(5):
        topic, payload = split(await socket.recv_multipart())
    return topic, decode(payload)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 -- the counters of the classes under test have no event
            await asyncio.sleep(0.005)


async def test_a_late_joiner_gets_meta_and_state_at_once_and_then_frames(subscribe):
    async with publisher() as avatar:
        avatar.state(State(state="speaking", event="started-speaking"))
        socket = subscribe(avatar.endpoint)
        topic, meta = await receive(socket)
        assert (topic, meta) == (Topic.META, msgspec.structs.replace(META, sid="s1", pts_us=7, cap_us=8))
        topic, state = await receive(socket)
        assert (topic, state.state, state.event) == (Topic.STATE, "speaking", "snapshot")

        publish(avatar, 3)
        face, audio, video = [(await receive(socket))[1] for _ in range(3)]
        assert {face.pts_us, audio.pts_us, video.pts_us} == {120_000}
        assert face.cap_us == 1_120_000
        np.testing.assert_array_equal(floats(face.lm).reshape(68, 3), LANDMARKS + 3)
        np.testing.assert_array_equal(floats(face.bs), BLENDSHAPES)
        assert face.head == HEAD and face.speaking
        np.testing.assert_array_equal(np.frombuffer(audio.data, "<i2"), np.full(640, 3))
        assert (audio.sr, audio.n, video.w, video.h) == (16_000, 640, 64, 48)


async def test_meta_and_state_are_repeated_every_second(subscribe):
    async with publisher() as avatar:
        socket = subscribe(avatar.endpoint, Topic.META)
        assert [(await receive(socket))[1].seq for _ in range(2)] == [0, 1]


async def test_nothing_is_encoded_without_a_subscriber(subscribe):
    changes: list[bool] = []
    avatar: Publisher = publisher(on_wanted=lambda: changes.append(avatar.wanted(Topic.FACE)))
    async with avatar:
        publish(avatar, 0)
        avatar.stats({"rtf": 0.5})
        assert not avatar.sent
        socket = subscribe(avatar.endpoint, Topic.FACE, "avatard/9/", "avatard/1/face/extra")
        await until(lambda: avatar.wanted(Topic.FACE))
        assert not avatar.wanted(Topic.VIDEO)
        publish(avatar, 0)
        assert avatar.sent == {Topic.FACE: 1}
        socket.close()
        await until(lambda: not avatar.wanted(Topic.FACE))
        publish(avatar, 1)
        assert avatar.sent == {Topic.FACE: 1}
        assert changes == [True, False]


@pytest.mark.parametrize(("enc", "magic"), [("jpeg", b"\xff\xd8\xff"), ("png", b"\x89PNG"), ("rgb24", b"")])
async def test_video_is_what_meta_says(subscribe, enc, magic):
    import cv2

    async with publisher(image=ImageFormat(enc, quality=95)) as avatar:
        socket = subscribe(avatar.endpoint, Topic.VIDEO)
        await until(lambda: avatar.wanted(Topic.VIDEO))
        smooth = np.asarray(cv2.GaussianBlur(PICTURE, (0, 0), 5), np.uint8)
        avatar.video(Stamp(0, 0), smooth)
        _, video = await receive(socket)
        assert isinstance(video, Video) and video.enc == enc and video.data.startswith(magic)
        if enc == "rgb24":
            seen = np.frombuffer(video.data, np.uint8).reshape(48, 64, 3)
        else:
            seen = np.asarray(cv2.imdecode(np.frombuffer(video.data, np.uint8), cv2.IMREAD_COLOR))[:, :, ::-1]
        assert np.abs(seen.astype(int) - smooth).max() <= (12 if enc == "jpeg" else 0)


@pytest.mark.parametrize("enc", ["png", "rgba32"])
async def test_video_may_have_alpha(subscribe, enc):
    import cv2

    async with publisher(image=ImageFormat(enc)) as avatar:
        socket = subscribe(avatar.endpoint, Topic.VIDEO)
        await until(lambda: avatar.wanted(Topic.VIDEO))
        rgba = np.dstack([PICTURE, PICTURE[..., 0]])
        avatar.video(Stamp(0, 0), rgba)
        _, video = await receive(socket)
        assert isinstance(video, Video) and (video.enc, video.ch, video.w, video.h) == (enc, 4, 64, 48)
        if enc == "rgba32":
            seen = np.frombuffer(video.data, np.uint8).reshape(48, 64, 4)
        else:
            stored = cv2.imdecode(np.frombuffer(video.data, np.uint8), cv2.IMREAD_UNCHANGED)
            seen = np.asarray(cv2.cvtColor(np.asarray(stored), cv2.COLOR_BGRA2RGBA))
        np.testing.assert_array_equal(seen, rgba)


async def test_a_conflating_subscriber_gets_the_newest_face_in_single_parts(client):
    async with publisher(single_part=True) as avatar:
        socket = client(zmq.SUB)
        socket.conflate = True
        socket.subscribe(Topic.FACE)
        socket.connect(avatar.endpoint)
        await until(lambda: avatar.wanted(Topic.FACE))
        for frame in range(100):
            publish(avatar, frame)
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)
        topic, face = await receive(socket)
        assert (topic, face.pts_us) == (Topic.FACE, 99 * 40_000)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda p: p.face(Stamp(0, 0), LANDMARKS[:5], BLENDSHAPES, HEAD, speaking=False),
            r"\[5, 3\], expected \[68, 3\]",
        ),
        (lambda p: p.video(Stamp(0, 0), PICTURE[:, :, :2]), r"uint8 \[48, 64, 2\], expected uint8 \[h, w, 3\]"),
        (lambda p: p.audio(Stamp(0, 0), np.zeros(640), 16_000), r"float64 \[640\], expected int16"),
    ],
)
async def test_wrong_shapes_are_named(subscribe, call, text):
    async with publisher() as avatar:
        subscribe(avatar.endpoint)
        await until(lambda: avatar.wanted(Topic.VIDEO))
        with pytest.raises(ValueError, match=text):
            call(avatar)


async def test_ten_subscribers_each_get_every_frame(subscribe):
    async with publisher(queue=500) as avatar:
        sockets = [subscribe(avatar.endpoint, Topic.FACE) for _ in range(10)]
        probes = [subscribe(avatar.endpoint, Topic.META) for _ in range(2)]
        for socket in probes:
            await receive(socket)
        await asyncio.sleep(0.2)  # all ten have connected: subscriptions of one topic do not tell how many there are
        for frame in range(50):
            publish(avatar, frame)
        for socket in sockets:
            assert [(await receive(socket))[1].seq for _ in range(50)] == list(range(50))


async def test_a_stalled_subscriber_loses_frames_and_nobody_else_does(subscribe):
    """Raw pictures, 300 MB of them, at a subscriber that never reads."""
    picture = np.zeros((512, 512, 3), np.uint8)
    process = psutil.Process()
    async with publisher(image=ImageFormat("rgb24")) as avatar:
        stalled = subscribe(avatar.endpoint, Topic.VIDEO, queue=1)
        alive = subscribe(avatar.endpoint, Topic.VIDEO, Topic.FACE)
        await until(lambda: avatar.wanted(Topic.VIDEO) and avatar.wanted(Topic.FACE))
        await asyncio.sleep(0.2)
        before = process.memory_info().rss
        for frame in range(400):
            stamp = Stamp(frame * 40_000, 0)
            avatar.video(stamp, picture)
            _, message = await receive(alive)
            assert message.seq == frame
        assert process.memory_info().rss - before < 64e6
        lost = 0
        with contextlib.suppress(TimeoutError):
            for _ in range(400):
                async with asyncio.timeout(0.2):
                    lost = decode((await stalled.recv_multipart())[1]).seq
        assert lost < 399


SUBSCRIBER = """
import sys, zmq
socket = zmq.Context().socket(zmq.SUB)
socket.subscribe("")
socket.connect(sys.argv[1])
while True:
    socket.recv_multipart()
    print("frame", flush=True)
"""


async def test_a_subscriber_that_dies_is_forgotten(subscribe):
    async with publisher() as avatar:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SUBSCRIBER, avatar.endpoint, stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        assert await child.stdout.readline() == b"frame\n"
        alive = subscribe(avatar.endpoint, Topic.FACE)
        await asyncio.sleep(0.2)
        for frame in range(20):
            if frame == 10:
                child.kill()
            publish(avatar, frame)
            assert (await receive(alive))[1].pts_us == frame * 40_000
        await child.communicate()
        await until(lambda: not avatar.wanted(Topic.VIDEO))
        assert avatar.wanted(Topic.FACE)


async def test_a_peer_that_talks_to_the_publisher_is_ignored(client, subscribe):
    async with publisher() as avatar:
        chatty = client(zmq.XSUB)
        chatty.connect(avatar.endpoint)
        for text in [b"", b"hello", b"\2", b"\1" + b"x" * 1000]:
            await chatty.send(text)
        socket = subscribe(avatar.endpoint, Topic.FACE)
        await until(lambda: avatar.wanted(Topic.FACE))
        publish(avatar, 0)
        assert (await receive(socket))[0] == Topic.FACE


async def test_bytes_that_are_no_zmtp_disturb_nobody(subscribe, push):
    async with publisher() as avatar, receiver(on_error=pytest.fail) as ear:
        for endpoint in (avatar.endpoint, ear.endpoint):
            for rubbish in (b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\xff" * 5000):
                _, writer = await asyncio.open_connection("127.0.0.1", int(endpoint.rpartition(":")[2]))
                writer.write(rubbish)
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        assert (await receive(subscribe(avatar.endpoint)))[0] == Topic.META
        await push(ear.endpoint).send(encode(EndOfUtterance()))
        assert await collect(ear, 1) == [EndOfUtterance()]


@contextlib.asynccontextmanager
async def reading(ear):
    """Take every request, as the daemon does."""

    async def read():
        async for _ in ear:
            pass

    task = asyncio.create_task(read())
    yield
    await cancel_and_wait(task)


async def collect(ear, n):
    async with asyncio.timeout(10):
        return [await anext(ear) for _ in range(n)]


async def test_requests_arrive_in_order(push):
    requests = [
        SECOND_OF_SOUND,
        Speech(enc="f32le", sr=48_000, ch=2, data=bytes(80), id="a"),
        EndOfUtterance(),
        Portrait(data=b"image"),
    ]
    async with receiver(on_error=pytest.fail) as ear:
        socket = push(ear.endpoint)
        for request in requests:
            await socket.send(encode(request))
            assert await collect(ear, 1) == [request]
        assert ear.received == {
            "Speech": 2,
            "EndOfUtterance": 1,
            "Portrait": 1,
        }


async def test_what_one_avatar_publishes_another_can_hear(subscribe, push):
    async with publisher() as avatar, receiver(on_error=pytest.fail) as ear:
        socket = subscribe(avatar.endpoint, Topic.AUDIO)
        await until(lambda: avatar.wanted(Topic.AUDIO))
        publish(avatar, 1)
        await push(ear.endpoint).send_multipart(await socket.recv_multipart())
        [speech] = await collect(ear, 1)
        np.testing.assert_array_equal(speech.samples(), np.full(640, 1 / 32768, np.float32))


async def test_malformed_messages_are_counted_and_answered_and_cost_no_frames(push, subscribe):
    random = np.random.default_rng(1)
    good = encode(SECOND_OF_SOUND)
    async with publisher() as avatar, receiver(on_error=avatar.error) as ear, reading(ear):
        states = subscribe(avatar.endpoint, Topic.STATE)
        faces = subscribe(avatar.endpoint, Topic.FACE)
        await receive(states)
        await until(lambda: avatar.wanted(Topic.FACE))
        socket = push(ear.endpoint)

        async def flood():
            for i in range(500):
                match i % 5:
                    case 0:
                        parts = [random.bytes(int(random.integers(0, 200)))]
                    case 1:
                        parts = [good[: random.integers(1, len(good))]]
                    case 2:
                        cut = int(random.integers(0, 40))
                        parts = [good[:cut] + random.bytes(4) + good[cut + 3 :]]
                    case 3:
                        parts = [b"\x81" * int(random.integers(1, 5000))]
                    case _:
                        parts = [b"a", b"b", good]
                await socket.send_multipart(parts)

        flooding = asyncio.create_task(flood())
        frame = 0
        while not flooding.done() or ear.received.total() < 500:
            publish(avatar, frame)
            assert (await receive(faces))[1].seq == frame
            frame += 1
            await asyncio.sleep(0.005)
        await flooding

        errors = [state for state in [(await receive(states))[1] for _ in range(100)] if state.event == "error"]
        assert errors and all(error.message for error in errors)
        # A changed byte may still leave a valid message.
        assert ear.received["malformed"] > 475
        await socket.send(encode(EndOfUtterance(id="still here")))
        await until(lambda: ear.received["EndOfUtterance"] == 1)


async def test_who_is_not_read_waits_and_loses_nothing(push):
    async with receiver(on_error=pytest.fail) as ear:
        socket = push(ear.endpoint)
        socket.sndhwm = 1
        sent = 0

        async def send():
            nonlocal sent
            for i in range(2000):
                await socket.send(encode(Speech(enc="pcm_s16le", sr=8_000, data=bytes(16_000), id=str(i))))
                sent += 1

        sending = asyncio.create_task(send())
        before = -1
        while sent > before:
            before = sent
            await asyncio.sleep(0.3)
        assert sent < 2000 and not ear.received
        received = await collect(ear, 2000)
        assert [request.id for request in received] == [str(i) for i in range(2000)]
        await sending


async def test_a_message_beyond_the_limit_costs_its_sender_the_connection(push):
    async with receiver(on_error=pytest.fail) as ear:
        await push(ear.endpoint).send(bytes(9 * 1024 * 1024))
        await push(ear.endpoint).send(encode(EndOfUtterance()))
        assert await collect(ear, 1) == [EndOfUtterance()]
        assert ear.received.total() == 1


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        ("tcp://0.0.0.0:5556", "reachable from other machines"),
        ("tcp://*:5556", "reachable from other machines"),
        ("tcp://[::]:5556", "reachable from other machines"),
        ("tcp://eth0:5556", "reachable from other machines"),
        ("tcp://127.0.0.1", "no ZeroMQ endpoint"),
        ("tcp://127.0.0.1:99999", "no ZeroMQ endpoint"),
        ("http://127.0.0.1:80", "no ZeroMQ endpoint"),
        ("nonsense", "no ZeroMQ endpoint"),
    ],
)
def test_endpoints_that_are_refused(endpoint, text):
    with pytest.raises(EndpointError, match=text):
        publisher(endpoint=endpoint)
    with pytest.raises(EndpointError, match=text):
        Receiver(endpoint, on_error=print)


async def test_a_taken_port_is_one_clear_line():
    async with publisher() as first:
        with pytest.raises(EndpointError, match=f"cannot bind {first.endpoint}: Address already in use"):
            await publisher(endpoint=first.endpoint).start()


async def test_ipv6_loopback(subscribe):
    try:
        async with publisher(endpoint="tcp://[::1]:*") as avatar:
            assert avatar.endpoint.startswith("tcp://[::1]:")
    except EndpointError as error:
        pytest.skip(f"this machine has no IPv6: {error}")


async def test_stop_without_start_and_start_again():
    avatar = publisher()
    await avatar.stop()
    await avatar.start()
    await avatar.stop()
    await avatar.stop()


async def test_stop_at_the_moment_somebody_joins(subscribe):
    for _ in range(5):
        async with asyncio.timeout(10):
            async with publisher() as avatar:
                subscribe(avatar.endpoint)
                await until(lambda: avatar.wanted(Topic.META))


@pytest.fixture
def keys(tmp_path):
    """The daemon's keys, which let `friend` in, and the secret files of `friend` and `stranger`."""
    server = create_keys(tmp_path, "server")
    friend = create_keys(tmp_path, "friend")
    stranger = create_keys(tmp_path, "stranger")
    allowed = tmp_path / "allowed"
    allowed.write_text(f"# who may connect\n\n{friend[2]} a friend\n")
    return load_server_keys(server[1], allowed), server[2], friend[1], stranger[1]


@pytest.mark.parametrize(
    ("who", "let_in"), [("friend", True), ("stranger", False), ("anybody", False), ("plain", False)]
)
async def test_only_clients_with_an_allowed_key_get_in(client, keys, who, let_in):
    server_keys, server_public, friend, stranger = keys
    async with publisher(keys=server_keys) as avatar, receiver(on_error=pytest.fail, keys=server_keys) as ear:
        subscriber, pusher = client(zmq.SUB), client(zmq.PUSH)
        for socket in (subscriber, pusher):
            if who != "plain":
                set_client_keys(socket, server_public, {"friend": friend, "stranger": stranger}.get(who))
        subscriber.subscribe("")
        subscriber.connect(avatar.endpoint)
        pusher.connect(ear.endpoint)
        sending = asyncio.ensure_future(pusher.send(encode(EndOfUtterance())))
        if let_in:
            assert (await receive(subscriber))[0] == Topic.META
            assert await collect(ear, 1) == [EndOfUtterance()]
        else:
            assert not await subscriber.poll(300)
            assert not ear.received
        sending.cancel()


async def test_without_a_list_everyone_who_knows_the_public_key_gets_in(client, keys):
    server_keys, server_public, *_ = keys
    async with publisher(keys=msgspec.structs.replace(server_keys, clients=None)) as avatar:
        socket = client(zmq.SUB)
        set_client_keys(socket, server_public, None)
        socket.subscribe("")
        socket.connect(avatar.endpoint)
        assert (await receive(socket))[0] == Topic.META


def test_keys_allow_other_addresses(keys):
    publisher(endpoint="tcp://0.0.0.0:5556", keys=keys[0])
