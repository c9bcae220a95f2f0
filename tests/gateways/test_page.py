"""The page in a real Chromium, with a microphone that hears a file, and a WHEP player from npm."""

import asyncio
import base64
import shutil
import subprocess
import wave
from pathlib import Path
from typing import Any

import aiohttp
import cv2
import numpy as np
import pytest
from aiohttp import web

from avatard.config import Server
from avatard.media.pcm import to_pcm16
from tests.support.paths import ROOT
from tests.support.serving import beeps, config, running_server, until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WHEP_CLIENT = ROOT / "tests" / "gateways" / "whep_client"
#: Reads every picture's mouth and records the sound for a while, in the page's own elements.
RECORD = """
async (seconds) => {
  const video = document.querySelector("video"), audio = document.querySelector("audio") ?? video;
  const canvas = new OffscreenCanvas(64, 64), paint = canvas.getContext("2d", { willReadFrequently: true });
  const context = new AudioContext({ sampleRate: 16000 });
  const recorder = context.createScriptProcessor(1024, 1, 1);
  const [sound, mouth] = [[], []];
  const start = context.currentTime;
  recorder.onaudioprocess = ({ inputBuffer }) => sound.push(...inputBuffer.getChannelData(0));
  const stream = new MediaStream(audio.srcObject.getAudioTracks());
  context.createMediaStreamSource(stream).connect(recorder).connect(context.destination);
  const end = performance.now() + seconds * 1000;
  const look = () => {
    paint.drawImage(video, 0, 0, 64, 64);
    mouth.push([context.currentTime - start, paint.getImageData(32, 48, 1, 1).data[0]]);
    if (performance.now() < end) video.requestVideoFrameCallback(look);
  };
  const before = video.getVideoPlaybackQuality().totalVideoFrames;
  video.requestVideoFrameCallback(look);
  await new Promise((resolve) => setTimeout(resolve, seconds * 1000 + 200));
  const decoded = video.getVideoPlaybackQuality().totalVideoFrames - before;
  return { sound: sound.map((x) => Math.round(x * 1e4)), mouth, fps: decoded / (seconds + 0.2) };
}
"""


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
async def browse(tmp_path):
    """Opens a page in a Chromium whose microphone hears the beeps."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt install chromium)")
    playwright = pytest.importorskip("playwright.async_api")
    with wave.open(str(tmp_path / "voice.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(to_pcm16(beeps(8)).tobytes())
    opened = []
    async with playwright.async_playwright() as driver:

        async def go(url: str, refuse: bool = False) -> Any:
            arguments = [
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={tmp_path / 'voice.wav'}",
                "--autoplay-policy=no-user-gesture-required",
            ]
            if not refuse:
                arguments.append("--use-fake-ui-for-media-stream")
            browser = await driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
            opened.append(browser)
            context = await browser.new_context(permissions=[] if refuse else ["microphone"])
            page = await context.new_page()
            page.mistakes = []
            page.on("pageerror", lambda error: page.mistakes.append(str(error)))
            await page.goto(url)
            return page

        yield go
        for browser in opened:
            await browser.close()


def envelope(sound: np.ndarray, step: int = 160) -> np.ndarray:
    """Loudness each 10 ms."""
    frames = sound[: len(sound) // step * step].reshape(-1, step)
    loudness: np.ndarray = np.sqrt((frames.astype(np.float64) ** 2).mean(axis=1))
    return loudness


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's r; 0 where one of them does not change."""
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 and other.std() > 0 else 0.0


async def test_a_person_speaks_and_the_portrait_speaks_with_them(browse):
    async with running_server() as (session, url):
        page = await browse(url)
        await page.click("#connect")
        await page.locator("#status[data-state=live]").wait_for()
        await page.click("#microphone")
        await page.locator("#microphone[aria-pressed=true]").wait_for()
        await until(lambda: session.speaking)
        await page.locator(".stage.speaking").wait_for()
        got = await page.evaluate(RECORD, 5)
        assert got["fps"] >= 24
        loud = envelope(np.array(got["sound"]) / 1e4)
        said = envelope(beeps(4))
        # The syllables that were heard are the ones that were said (echo cancellation shapes them a little).
        sounding = (loud > loud.max() / 3).astype(float)
        spoken = (said > said.max() / 3).astype(float)
        best = max(correlation(sounding[at : at + 120], spoken[:120]) for at in range(100, 260))
        assert best > 0.8
        # The mouth opens with the sound that comes out: within a frame and the recorder's block of 64 ms.
        at, dark = (np.array(column) for column in zip(*got["mouth"], strict=True))
        opening = np.interp(np.arange(len(loud)) / 100, at, 255 - dark)
        lags = range(-20, 21)
        aligned = [correlation(np.roll(opening, lag)[100:-100], loud[100:-100]) for lag in lags]
        assert max(aligned) > 0.7
        assert abs(lags[int(np.argmax(aligned))]) <= 11
        assert await page.inner_text("#fps") != "–"
        await page.click("#interrupt")
        await until(lambda: session.metrics.recent_latency)
        await page.click("#disconnect")
        await page.locator("#status[data-state=idle]").wait_for()
        await until(lambda: b'avatard_sessions{kind="page"} 0.0' in session.metrics.text())
        assert not page.mistakes


async def test_files_are_spoken_and_portraits_swapped(browse, tmp_path):
    async with running_server() as (session, url):
        page = await browse(url)
        await page.click("#connect")
        await page.locator("#status[data-state=live]").wait_for()
        await page.set_input_files("#sound", tmp_path / "voice.wav")
        await until(lambda: session.speaking)
        await page.click("#interrupt")
        await until(lambda: not session.speaking)
        before = session.generation.digest
        cv2.imwrite(str(tmp_path / "other.png"), np.full((90, 90, 3), 200, np.uint8))
        await page.set_input_files("#portrait", tmp_path / "other.png")
        await until(lambda: session.generation.digest != before)
        await page.get_by_text("other.png is the avatar now.").wait_for()
        group = np.repeat(np.array([50, 120, 240], np.uint8), 90)[None, :, None].repeat(90, axis=0).repeat(3, axis=2)
        cv2.imwrite(str(tmp_path / "group.png"), group)
        await page.set_input_files("#portrait", tmp_path / "group.png")
        await page.get_by_text("has 3 faces").wait_for()
        await page.click("#faces button:nth-of-type(3)")
        await page.get_by_text("group.png is the avatar now.").wait_for()
        assert session.generation.at_rest is not None and session.generation.at_rest.pixels.max() == 240
        assert await page.locator("#faces").is_hidden()
        (tmp_path / "text.png").write_text("no picture")
        await page.set_input_files("#portrait", tmp_path / "text.png")
        await page.get_by_text("the portrait is not a picture").wait_for()
        assert not page.mistakes


async def test_what_goes_wrong_is_said(browse):
    async with running_server() as (_, url):
        page = await browse(url, refuse=True)
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.id") == "connect"
        await page.keyboard.press("Enter")
        await page.locator("#status[data-state=live]").wait_for()
        await page.click("#microphone")
        await page.get_by_text("The microphone was refused").wait_for()
        second = await page.context.new_page()
        await second.goto(url)
        await second.click("#connect")
        await second.get_by_text("The server is full or starting").wait_for()


async def test_a_token_in_the_address_is_enough(browse):
    async with running_server(config(server=Server(port=0, token="s3cret"))) as (_, url):
        page = await browse(f"{url}/?token=s3cret")
        await page.click("#connect")
        await page.locator("#status[data-state=live]").wait_for()


def install_whep_client(folder: Path) -> Path:
    """The player's module, installed once into pytest's cache folder."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    module = folder / "node_modules" / "whip-whep" / "whep.js"
    if not module.exists():
        for file in WHEP_CLIENT.iterdir():
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"npm could not install the WHEP client: {result.stderr.strip().splitlines()[-1:]}")
    return module


async def test_a_whep_player_from_npm_plays_the_stream_from_another_origin(browse, request):
    module = await asyncio.to_thread(install_whep_client, request.config.cache.mkdir("whep_client"))
    source = base64.b64encode(module.read_bytes()).decode()
    async with running_server() as (session, url), aiohttp.ClientSession():
        elsewhere = web.Application()

        async def blank(request: web.Request) -> web.Response:
            return web.Response(text="<!doctype html><video autoplay muted></video>", content_type="text/html")

        elsewhere.router.add_get("/", blank)
        runner = web.AppRunner(elsewhere)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            page = await browse(f"http://127.0.0.1:{runner.addresses[0][1]}/")
            await page.evaluate(
                """async ([source, url]) => {
                  const { WHEPClient } = await import("data:text/javascript;base64," + source);
                  const peer = window.peer = new RTCPeerConnection(), stream = new MediaStream();
                  peer.addTransceiver("video", { direction: "recvonly" });
                  peer.addTransceiver("audio", { direction: "recvonly" });
                  peer.ontrack = ({ track }) => stream.addTrack(track);
                  document.querySelector("video").srcObject = stream;
                  const client = window.client = new WHEPClient();
                  await client.view(peer, url);
                }""",
                [source, f"{url}/whep"],
            )
            await until(lambda: session.scheduler.next_frame > 50)
            got = await page.evaluate(RECORD, 3)
            assert got["fps"] >= 24
            await page.evaluate("client.stop()")
            await until(lambda: b'avatard_sessions{kind="whep"} 0.0' in session.metrics.text())
            assert not page.mistakes
        finally:
            await runner.cleanup()
