"""A daemon's WebSocket and ZeroMQ publisher as a stream; in real time."""

import asyncio
import random
from contextlib import asynccontextmanager

import numpy as np
import pytest

from avatard.config import Server as ServerConfig
from avatard.config import Zmq
from avatard.gateways.zeromq import ZmqGateway
from avatard.integrations import daemon as module
from avatard.integrations.daemon import DaemonError, DaemonStream
from avatard.integrations.stream import AvatarFrame
from avatard.protocols.curve import create_keys
from tests.support.paths import ROOT
from tests.support.serving import beeps, config, running_server, until


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@asynccontextmanager
async def watched(server_key="", **keys):
    """A running daemon's stream, and its frames."""
    zmq = Zmq(publish="tcp://127.0.0.1:*", send_queue_messages=1000, **keys)
    settings = config(zmq=zmq, server=ServerConfig(port=0, token="secret"))
    async with running_server(settings) as (session, url):
        gateway = ZmqGateway(zmq)
        await gateway.start(session)
        assert gateway.publisher is not None
        stream, frames = (
            DaemonStream(url, gateway.publisher.endpoint, token="secret", server_key=server_key),
            list[AvatarFrame](),
        )
        await stream.start()

        async def watch() -> None:
            async for frame in stream:
                frames.append(frame)

        watching = asyncio.create_task(watch())
        await until(lambda: len(frames) > 5)
        yield stream, frames, session
        await stream.stop()
        await asyncio.wait_for(watching, 5)
        await gateway.stop()


def ends(frames):
    return [end for frame in frames for end in frame.ended]


async def test_encrypted(tmp_path):
    _, secret, public = create_keys(tmp_path, "server")
    async with watched(secret_key_file=str(secret), server_key=public) as (_, frames, _):
        assert frames[-1].rate_hz == 16_000


@pytest.mark.parametrize("encoding", ["jpeg", "rgb24"])
async def test_speech_comes_out_with_pictures_and_its_end(encoding):
    async with watched(video_encoding=encoding) as (stream, frames, _):
        assert stream.size == (256, 256)
        spoken = beeps(0.5)
        for first in range(0, len(spoken), 160):
            name = stream.push(spoken[first : first + 160], 16_000)
        await stream.room()
        assert stream.end() == name and stream.end() == ""
        await until(lambda: ends(frames))
        assert [(end.id, end.played_ms, end.interrupted) for end in ends(frames)] == [(name, 500, False)]
        heard = np.concatenate([frame.sound for frame in frames])
        assert np.count_nonzero(heard) == np.count_nonzero(np.rint(spoken * 32768))
        assert all(frame.rate_hz == 16_000 and len(frame.sound) == 640 for frame in frames)
        shown = [frame.picture for frame in frames if frame.picture is not None]
        assert shown and all(picture.shape == (256, 256, 3) for picture in shown)
        assert any(frame.speaking for frame in frames) and not frames[0].speaking


async def test_segments_and_interrupts_end_once_each():
    random.seed(1)
    async with watched() as (stream, frames, _):
        names, cut = [], set()
        for number in range(8):
            seconds = random.uniform(0.15, 0.4)
            names.append(
                stream.push(beeps(seconds, 24_000 if number % 2 else 16_000), 24_000 if number % 2 else 16_000)
            )
            if number in (2, 5):
                await asyncio.sleep(random.uniform(0, 0.5))
                cut |= set(stream._segments)
                stream.interrupt()
                before = len(frames)
                await until(lambda before=before: len(frames) > before + 10)
                assert not any(frame.sound.any() for frame in frames[before:])
            else:
                stream.end()
        await until(lambda: len(ends(frames)) == 8)
        assert [end.id for end in ends(frames)] == names
        assert all(end.interrupted == (end.id in cut) for end in ends(frames))


async def test_a_daemon_that_goes_away_ends_everything(monkeypatch):
    monkeypatch.setattr(module, "MAX_UNSENT", 2)
    zmq = Zmq(publish="tcp://127.0.0.1:*")
    async with running_server(config(zmq=zmq)) as (session, url):
        gateway = ZmqGateway(zmq)
        await gateway.start(session)
        assert gateway.publisher is not None
        stream = DaemonStream(url, gateway.publisher.endpoint)
        await stream.start()
        stream.push(beeps(20), 16_000)
        await gateway.stop()
    frames = [frame async for frame in stream]
    assert [end.interrupted for end in ends(frames)] == [True]
    stream.push(beeps(1), 16_000)
    await asyncio.wait_for(stream.room(), 5)
    await stream.stop()


async def test_what_cannot_be_used_is_one_line(monkeypatch):
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.2)
    with pytest.raises(DaemonError, match=r"no avatard answers at http://127.0.0.1:9/ws/audio"):
        await DaemonStream("http://127.0.0.1:9").start()
    async with running_server() as (_, url):
        with pytest.raises(DaemonError, match=r"nothing is published at tcp://127.0.0.1:9: start it with avatard"):
            await DaemonStream(url, "tcp://127.0.0.1:9").start()
        with pytest.raises(DaemonError, match="cannot connect to nonsense"):
            await DaemonStream(url, "nonsense").start()
    with pytest.raises(ValueError, match="sample rate is 100 Hz"):
        DaemonStream().push(np.zeros(10, np.float32), 100)
