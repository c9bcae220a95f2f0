"""A client in JavaScript with npm's zeromq and msgpack, which uses no code of ours, reads and checks ten seconds."""

import asyncio
import json
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from avatard.protocols.image import ImageFormat
from avatard.protocols.messages import AnyRequest, EndOfUtterance, Head, Meta, Speech, State
from avatard.protocols.tasks import cancel_and_wait
from avatard.protocols.zmq_sockets import Publisher, Receiver, Stamp

SOURCE = Path(__file__).parent / "zmq_node"


@pytest.fixture(scope="session")
def node_client(request):
    """The client with its packages, installed once into pytest's cache folder."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        pytest.skip("node and npm are not installed")
    folder = request.config.cache.mkdir("zmq_node")
    for file in SOURCE.iterdir():
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    lock, installed = (folder / "package-lock.json").read_text(), folder / "installed-lock.json"
    if not installed.exists() or installed.read_text() != lock:
        # zeromq brings its library along for every platform; its install script would only build it anew.
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"npm could not install the client's packages: {result.stderr.strip().splitlines()[-1:]}")
        installed.write_text(lock)
    return [node, str(folder / "client.js")]


async def collect(receiver, requests):
    async for request in receiver:
        requests.append(request)


async def play(publisher):
    """Publish frames, eight times as fast as they would be played, until cancelled."""
    random = np.random.default_rng(0)
    picture = random.integers(0, 255, (64, 64, 3), np.uint8)
    publisher.state(State(state="speaking", event="started-speaking"))
    frame = 0
    while True:
        stamp = Stamp(frame * 40_000, 1_790_000_000_000_000 + frame * 40_000)
        angle = frame / 100
        head = Head(q=(0, math.sin(angle), 0, math.cos(angle)), t=(0.1, -0.2, 0), s=70.5)
        landmarks = random.normal(size=(68, 3)).astype(np.float32)
        publisher.face(stamp, landmarks, random.random(52, np.float32), head, speaking=True)
        publisher.audio(stamp, random.integers(-9, 9, 640).astype(np.int16), 16_000)
        publisher.video(stamp, picture)
        if frame % 25 == 0:
            publisher.stats({"frames": frame})
        frame += 1
        await asyncio.sleep(0.005)


async def test_a_node_client_reads_ten_seconds_of_all_topics_and_speaks(node_client):
    meta = Meta(
        server="avatard/test",
        identity="0" * 8,
        fps=25,
        enc="jpeg",
        w=64,
        h=64,
        sr=16_000,
        arkit=[f"shape{i}" for i in range(52)],
    )
    async with (
        Publisher(
            "tcp://127.0.0.1:*",
            sid="5f1c09e2",
            meta=meta,
            now=lambda: Stamp(0, 0),
            image=ImageFormat("jpeg", 80),
            queue=1000,  # at eight times the speed a busy machine would lose frames
        ) as publisher,
        Receiver("tcp://127.0.0.1:*", on_error=publisher.error) as receiver,
    ):
        playing, requests = asyncio.create_task(play(publisher)), list[AnyRequest]()
        receiving = asyncio.create_task(collect(receiver, requests))
        client = await asyncio.create_subprocess_exec(
            *node_client,
            publisher.endpoint,
            receiver.endpoint,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        reading = asyncio.create_task(client.communicate())
        await asyncio.wait([playing, reading], timeout=60, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            client.kill()
        await cancel_and_wait(playing, receiving)
        output, errors = await reading
        assert client.returncode == 0, errors.decode()

        report = json.loads(output)
        assert all(report["counts"][t] >= 250 for t in ("face", "video", "audio"))
        assert all(report["counts"][t] >= 1 for t in ("meta", "state", "stats"))
        speech, end = requests
        assert isinstance(speech, Speech) and speech.id == "node" and isinstance(end, EndOfUtterance)
        tone = np.trunc(8000 * np.sin(2 * np.pi * 440 * np.arange(1600) / 16_000))
        np.testing.assert_allclose(speech.samples() * 32768, tone, atol=1)
        assert receiver.received["malformed"] == 1
