"""`/mjpeg`: one encoding for all viewers, and none of them holds up another."""

import asyncio
import re
import threading
from types import SimpleNamespace
from typing import Any

import aiohttp
import cv2
import numpy as np
import pytest
from aiohttp import web

from avatard.config import Output as OutputConfig
from avatard.gateways import mjpeg as module
from avatard.gateways.middleware import json_errors
from avatard.gateways.mjpeg import Mjpeg
from avatard.media.synthetic import DIGITAL_SOURCE_TYPE
from avatard.protocols.image import encode_image
from tests.support.flashes import entry, frame_of
from tests.support.serving import until
from tests.support.still import StillSession


@pytest.fixture
async def serving(aiohttp_client):
    session = StillSession()
    mjpeg = Mjpeg(session, OutputConfig(mjpeg_viewers=2))  # type: ignore[arg-type]
    app = web.Application(middlewares=[json_errors])
    app.router.add_get("/mjpeg", mjpeg.serve)
    client = await aiohttp_client(app)
    yield session, mjpeg, client
    await mjpeg.close()


async def part(response: aiohttp.ClientResponse) -> np.ndarray:
    """The next picture of a stream."""
    head = (await response.content.readuntil(b"\r\n\r\n")).decode()
    found = re.fullmatch(r"--avatard-frame\r\nContent-Type: image/jpeg\r\nContent-Length: (\d+)\r\n\r\n", head)
    assert found is not None
    data = await response.content.readexactly(int(found[1]))
    assert await response.content.readexactly(2) == b"\r\n"
    assert DIGITAL_SOURCE_TYPE.encode() in data
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded


async def test_viewers_share_pictures_that_are_encoded_once(serving):
    session, mjpeg, client = serving
    async with client.get("/mjpeg") as one, client.get("/mjpeg") as two:
        assert one.headers["Content-Type"] == "multipart/x-mixed-replace;boundary=avatard-frame"
        assert one.headers["Cache-Control"] == "no-store"
        for viewer in (one, two):
            assert (await part(viewer)).mean() < 60, "something is shown before anything moves"
        assert session.sinks == [mjpeg]
        before = mjpeg.encoded
        mjpeg.play(entry(16))  # lit; 12 pictures a second are every second one
        mjpeg.play(entry(17))
        for viewer in (one, two):
            assert (await part(viewer)).mean() > 200
        assert mjpeg.encoded == before + 1
        async with client.get("/mjpeg") as third:
            assert third.status == 503 and third.headers["Retry-After"] == "10"
            assert (await third.json())[
                "error"
            ] == "all 2 viewer seats of /mjpeg are taken; /whep has others, with sound"
    await until(lambda: mjpeg.play(entry(0)) or not mjpeg.viewers)  # one that left is noticed by writing to it
    assert session.sinks == []


async def test_while_one_picture_is_encoded_others_are_left_out(serving, monkeypatch):
    session, mjpeg, client = serving
    async with client.get("/mjpeg") as viewer:
        await part(viewer)
        free, begun, encode = threading.Event(), threading.Event(), encode_image

        def slow(*arguments: Any) -> bytes:
            begun.set()
            assert free.wait(30)
            return encode(*arguments)

        monkeypatch.setattr(module, "encode_image", slow)
        before = mjpeg.encoded
        mjpeg.play(entry(0))
        await until(begun.is_set)
        for index in range(2, 20, 2):
            mjpeg.play(entry(index))
        free.set()
        await until(lambda: mjpeg.encoded == before + 1)
        assert (await part(viewer)).mean() < 60, "the one that was begun"


async def test_a_viewer_that_takes_nothing_loses_its_seat(serving, monkeypatch):
    session, mjpeg, client = serving
    monkeypatch.setattr(module, "WRITE_SECONDS", 0.1)
    noise = frame_of(np.random.default_rng(0).integers(0, 255, (1024, 1024, 3)).astype(np.uint8))
    reader, writer = await asyncio.open_connection(client.host, client.port, limit=1024)
    writer.write(b"GET /mjpeg HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await until(lambda: mjpeg.viewers == 1)
    large = SimpleNamespace(index=0, picture=noise)
    await until(lambda: mjpeg.play(large) or not mjpeg.viewers)
    assert session.sinks == []
    writer.close()


async def test_it_ends_with_the_server_and_waits_for_the_avatar(serving):
    session, mjpeg, client = serving
    at_rest, session.generation.at_rest = session.generation.at_rest, None
    async with client.get("/mjpeg") as early:
        assert early.status == 503
    session.generation.at_rest = at_rest
    async with client.get("/mjpeg") as viewer:
        await part(viewer)
        await mjpeg.close()
        await viewer.read()
    assert mjpeg.viewers == 0
