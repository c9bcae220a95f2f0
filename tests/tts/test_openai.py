"""The endpoint that many servers have, played by a small one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from avatard.tts.openai import OpenAiSynthesizer
from avatard.tts.synthesizer import TtsError, TtsUnavailableError

PCM = np.arange(-1200, 1200, dtype="<i2")


@asynccontextmanager
async def endpoint(handler: Any, path: str = "/v1/audio/speech") -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post(path, handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def spoken(url: str, voice: str = "", key: str = "k3y") -> tuple[np.ndarray, int]:
    synthesizer = OpenAiSynthesizer(url, key, "tts-1", "nova", 24_000)
    try:
        parts = [part async for part in synthesizer.speak("Hello.", voice)]
    finally:
        await synthesizer.close()
    return np.concatenate([samples for samples, _ in parts]), parts[0][1]


@pytest.mark.parametrize("path", ["", "/", "/v1/audio/speech"])
async def test_samples_are_streamed_and_the_key_is_sent(path):
    asked: list[tuple[str, dict[str, str]]] = []

    async def speech(request: web.Request) -> web.StreamResponse:
        asked.append((request.headers["Authorization"], await request.json()))
        response = web.StreamResponse(headers={"Content-Type": "audio/pcm"})
        await response.prepare(request)
        for start in range(0, PCM.nbytes, 999):  # samples cut in two
            await response.write(PCM.tobytes()[start : start + 999])
        return response

    async with endpoint(speech) as url:
        samples, rate_hz = await spoken(url + path, "fable")
        await spoken(url + path)
    np.testing.assert_array_equal(samples, PCM / np.float32(32768))
    assert rate_hz == 24_000
    body = {"model": "tts-1", "input": "Hello.", "voice": "fable", "response_format": "pcm"}
    assert asked == [("Bearer k3y", body), ("Bearer k3y", body | {"voice": "nova"})]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"status": 401, "text": '{"error": {"message": "wrong key"}}'}, "answers 401: wrong key"),
        ({"status": 500, "text": "it\nbroke"}, "answers 500: it broke"),
        ({"status": 307, "headers": {"Location": "/elsewhere"}}, "answers 307"),
        ({"body": b"ID3" + bytes(20), "content_type": "application/octet-stream"}, "got an MP3 file"),
        ({"body": b"\xff\xfb", "content_type": "audio/mpeg"}, "answers audio/mpeg, expected PCM"),
        ({"text": "<html>"}, "answers text/plain, expected PCM"),
    ],
)
async def test_what_is_no_speech_is_one_line(answer, text):
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(**answer)

    async with endpoint(refuse) as url:
        with pytest.raises(TtsError, match=text):
            await spoken(url)


async def test_an_endpoint_that_is_not_there_or_breaks_off_is_unavailable():
    async def break_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(bytes(100))
        assert request.transport is not None
        request.transport.abort()
        return response

    async with endpoint(break_off) as url:
        with pytest.raises(TtsUnavailableError, match="cannot be used"):
            await spoken(url)
    with pytest.raises(TtsUnavailableError, match="cannot be used"):
        await spoken(url)
