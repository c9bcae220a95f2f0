"""The page in a real Chromium, with a microphone that hears a file, and a WHEP player from npm."""

import asyncio
import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import aiohttp
import cv2
import numpy as np
import pytest
from aiohttp import web

from avatard.config import Picture, Server, Webrtc
from avatard.media.pcm import to_pcm16
from avatard.protocols.events import Quality
from tests.support.paths import ROOT
from tests.support.serving import beeps, config, running_server, until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WHEP_CLIENT = ROOT / "tests" / "gateways" / "whep_client"
#: Sound is recorded on the browser's audio thread: its main thread may be late.
RECORDER = """
registerProcessor("recorder", class extends AudioWorkletProcessor {
  process([[samples]]) {
    this.port.postMessage([currentTime, samples ?? new Float32Array(128)]);
    return true;
  }
});
"""
#: Reads every picture's mouth and records the sound for a while, in the page's own elements. The sound comes back as
#: text: a list of numbers would keep this event loop, which is the server's too, busy for a second.
RECORD = """
async ([seconds, module]) => {
  const video = document.querySelector("video"), audio = document.querySelector("audio") ?? video;
  const canvas = new OffscreenCanvas(1, 1), paint = canvas.getContext("2d", { willReadFrequently: true });
  const context = new AudioContext({ sampleRate: 16000 });
  await context.audioWorklet.addModule(module);
  const recorder = new AudioWorkletNode(context, "recorder");
  const [blocks, mouth] = [[], []];
  recorder.port.onmessage = ({ data }) => blocks.push(data);
  const stream = new MediaStream(audio.srcObject.getAudioTracks());
  context.createMediaStreamSource(stream).connect(recorder);
  while (!blocks.length) await new Promise((resolve) => setTimeout(resolve, 20));
  let recording = true;
  const look = () => {
    const [w, h] = [video.videoWidth, video.videoHeight];
    paint.drawImage(video, w / 2, h * 3 / 4, 1, 1, 0, 0, 1, 1);
    mouth.push([context.currentTime, paint.getImageData(0, 0, 1, 1).data[0]]);
    if (recording) video.requestVideoFrameCallback(look);
  };
  const [before, start] = [video.getVideoPlaybackQuality().totalVideoFrames, performance.now()];
  video.requestVideoFrameCallback(look);
  await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  recording = false;
  const decoded = video.getVideoPlaybackQuality().totalVideoFrames - before;
  const fps = decoded * 1000 / (performance.now() - start);
  await context.close();
  const sound = new Int16Array(blocks.length * 128);
  blocks.forEach(([, samples], n) => samples.forEach((x, k) => { sound[n * 128 + k] = x * 1e4; }));
  let text = "";
  new Uint8Array(sound.buffer).forEach((byte) => { text += String.fromCharCode(byte); });
  return { times: blocks.map(([time]) => time), sound: btoa(text), mouth, fps };
}
"""


QUANTUM = 128  # samples of a call of the recorder


class Recording(NamedTuple):
    fps: float  # pictures decoded
    sound: np.ndarray  # float, 16 kHz; what the browser skipped is silence
    times: np.ndarray  # of the pictures shown, in seconds from the first sample
    brightness: np.ndarray  # of their mouths


async def record(page: Any, seconds: float) -> Recording:
    module = "data:text/javascript;base64," + base64.b64encode(RECORDER.encode()).decode()
    got = await page.evaluate(RECORD, [seconds, module])
    times = np.array(got["times"])
    quanta = np.rint((times - times[0]) * 16000 / QUANTUM).astype(int)
    sound = np.zeros((quanta[-1] + 1, QUANTUM))
    sound[quanta] = np.frombuffer(base64.b64decode(got["sound"]), np.int16).reshape(-1, QUANTUM) / 1e4
    at, brightness = (np.array(column) for column in zip(*got["mouth"], strict=True))
    return Recording(got["fps"], sound.ravel(), at - times[0], brightness)


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

        async def go(url: str, refuse: bool = False, bypass_csp: bool = False) -> Any:
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
            context = await browser.new_context(permissions=[] if refuse else ["microphone"], bypass_csp=bypass_csp)
            page = await context.new_page()
            page.set_default_timeout(30_000)
            page.mistakes = []
            page.on("pageerror", lambda error: page.mistakes.append(str(error)))
            await page.goto(url)
            return page

        yield go
        for browser in opened:
            if browser.is_connected():
                await browser.close()


async def live(page: Any) -> None:
    await page.locator("#status[data-state=live]").wait_for()


async def holds(page: Any, condition: str, seconds: float = 30) -> None:
    """Wait for a condition in the page; Playwright's own way needs `unsafe-eval` in the page's policy."""
    async with asyncio.timeout(seconds):
        while not await page.evaluate(condition):
            await page.wait_for_timeout(50)


@asynccontextmanager
async def server_process(port: int = 0) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A server that may be killed, and its URL."""
    command = (sys.executable, "-m", "tests.support.server_process", str(port))
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        url = (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
        assert url, "the server did not start"
        yield process, url.rstrip("/")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def not_live_within(page: Any, seconds: float) -> None:
    """The page says that it is not live, and its picture is covered."""
    start = monotonic()
    await page.locator("#status:not([data-state=live])").wait_for()
    assert monotonic() - start < seconds
    assert "Live" not in await page.inner_text("#status")
    assert await page.locator("#curtain").is_visible()


def envelope(sound: np.ndarray, step: int = 160) -> np.ndarray:
    """Loudness each 10 ms."""
    frames = sound[: len(sound) // step * step].reshape(-1, step)
    loudness: np.ndarray = np.sqrt((frames.astype(np.float64) ** 2).mean(axis=1))
    return loudness


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's r; 0 where one of them does not change."""
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 and other.std() > 0 else 0.0


class Spoken(NamedTuple):
    """What a recording of the beeps tells."""

    fps: float
    heard: float  # correlation of the syllables heard with those said; echo cancellation shapes them a little
    opened: float  # correlation of the mouth with the sound
    lag: int  # of the mouth behind it, in 10 ms

    @property
    def good(self) -> bool:
        """Within a frame, a picture of the screen and the recorder's block."""
        return self.fps >= 24 and self.heard > 0.8 and self.opened > 0.7 and abs(self.lag) <= 11

    @classmethod
    def of(cls, recording: Recording) -> "Spoken":
        loud, said = envelope(recording.sound), envelope(beeps(4))
        sounding = (loud > loud.max() / 3).astype(float)
        spoken = (said > said.max() / 3).astype(float)
        heard = max(correlation(sounding[at : at + 120], spoken[:120]) for at in range(60, 240))
        opening = np.interp(np.arange(len(loud)) / 100, recording.times, 255 - recording.brightness)
        aligned = [correlation(np.roll(opening, lag)[60:-60], loud[60:-60]) for lag in range(-20, 21)]
        return cls(recording.fps, heard, max(aligned), 20 - int(np.argmax(aligned)))


async def test_a_person_speaks_and_the_portrait_speaks_with_them(browse):
    async with running_server() as (session, url):
        page = await browse(url, bypass_csp=True)  # for the recorder
        await page.click("#connect")
        await live(page)
        await page.click("#microphone")
        await page.locator("#microphone[aria-pressed=true]").wait_for()
        await until(lambda: session.speaking)
        await page.locator(".stage.speaking").wait_for()
        # A moment in which other programs take the processor spoils a recording, a fault of avatard spoils all.
        got: list[Spoken] = []
        while len(got) < 10 and not (got and got[-1].good):
            got.append(Spoken.of(await record(page, 4)))
        assert got[-1].good, got
        await page.locator("#fps", has_text=re.compile(r"^2[45]")).wait_for()
        await until(lambda: session.metrics.recent_live_latency)
        await page.locator("#latency", has_text=re.compile(r"^\d+ ms$")).wait_for()
        assert session.figures()["live_latency_ms"] < 2 * session.figures()["delay_ms"]
        await page.click("#interrupt")
        await page.click("#disconnect")
        await page.locator("#status[data-state=idle]").wait_for()
        await until(lambda: b'avatard_sessions{kind="page"} 0.0' in session.metrics.text())
        assert not page.mistakes


async def test_a_sound_file_is_named_with_progress_and_can_be_stopped(browse, tmp_path):
    async with running_server() as (session, url):
        page = await browse(url)
        # Chosen before there is a connection, it is spoken as soon as there is one.
        await page.set_input_files("#sound", tmp_path / "voice.wav")
        await page.get_by_text("voice.wav will be spoken when you are connected").wait_for()
        await page.click("#playing-stop")
        assert await page.locator("#playing").is_hidden()
        await page.set_input_files("#sound", tmp_path / "voice.wav")
        await page.click("#connect")
        await page.get_by_text("Speaking voice.wav").wait_for()
        await until(lambda: session.speaking)
        await holds(page, "document.querySelector('#playing-progress').value > 0.15")
        assert "/ 0:08" in await page.inner_text("#playing-time")
        # Speech that waits for its turn says nothing of the delay of live speech.
        assert "(planned)" in await page.inner_text("#latency")
        await page.click("#playing-stop")
        await until(lambda: not session.speaking)
        assert await page.locator("#playing").is_hidden()
        with wave.open(str(tmp_path / "short.wav"), "wb") as file:
            file.setparams((1, 2, 48000, 0, "NONE", ""))
            file.writeframes(to_pcm16(beeps(1, 48000)).tobytes())
        await page.set_input_files("#sound", tmp_path / "short.wav")
        await page.get_by_text("Speaking short.wav").wait_for()
        await page.locator("#playing").wait_for(state="hidden")
        (tmp_path / "text.mp3").write_text("no sound")
        await page.set_input_files("#sound", tmp_path / "text.mp3")
        await page.get_by_text("text.mp3 has no sound that this browser can decode.").wait_for()
        assert not page.mistakes


async def test_portraits_are_swapped_and_the_first_comes_back(browse, tmp_path):
    async with running_server() as (session, url):
        page = await browse(url)
        first = session.generation.digest
        assert await page.locator("#first").is_hidden()
        cv2.imwrite(str(tmp_path / "other.png"), np.full((90, 90, 3), 200, np.uint8))
        await page.set_input_files("#portrait", tmp_path / "other.png")
        await page.get_by_text("other.png is the avatar now.").wait_for()
        assert session.generation.digest != first
        await page.click("#connect")
        await live(page)
        await page.click("#first")
        await page.get_by_text("The first portrait is the avatar again.").wait_for()
        assert session.generation.digest == first
        await page.locator("#first").wait_for(state="hidden")
        assert not page.mistakes


async def test_of_several_faces_one_is_chosen_by_its_thumbnail(browse, tmp_path):
    async with running_server() as (session, url):
        page = await browse(url)
        group = np.repeat(np.array([50, 120, 240], np.uint8), 90)[None, :, None].repeat(90, axis=0).repeat(3, axis=2)
        cv2.imwrite(str(tmp_path / "group.png"), group)
        await page.set_input_files("#portrait", tmp_path / "group.png")
        await page.get_by_text("group.png has 3 faces. Whose portrait is it?").wait_for()
        middle = "c => c.getContext('2d').getImageData(48, 48, 1, 1).data[0]"
        shown = [await canvas.evaluate(middle) for canvas in await page.locator("#faces canvas").all()]
        assert shown == [50, 120, 240]
        assert await page.evaluate("document.activeElement.ariaLabel") == "Face 1 of 3, from the left"
        await page.get_by_role("button", name="Face 3 of 3").click()
        await page.get_by_text("group.png is the avatar now.").wait_for()
        assert session.generation.at_rest is not None and session.generation.at_rest.pixels.max() == 240
        assert await page.locator("#faces").is_hidden()
        assert not page.mistakes


async def test_pictures_that_cannot_be_read_get_the_right_line(browse, tmp_path):
    async with running_server() as (session, url):
        page = await browse(url)
        first = session.generation.digest
        for name, line in (
            ("photo.heic", "photo.heic is an HEIC picture, which this browser cannot read. Save it as JPEG or PNG"),
            ("scan.tiff", "scan.tiff is no picture that this browser can read. Save it as JPEG or PNG"),
            ("text.png", "the portrait is not a picture"),
            ("notes.pdf", "notes.pdf is neither a picture nor a sound."),
        ):
            (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic")
            await page.set_input_files("#portrait", tmp_path / name)
            await page.locator("#error", has_text=line).wait_for()
        # What the browser can read and the server does not take is sent as JPEG.
        cv2.imwrite(str(tmp_path / "portrait.avif"), np.full((90, 90, 3), 60, np.uint8))
        await page.set_input_files("#portrait", tmp_path / "portrait.avif")
        await page.get_by_text("portrait.avif is the avatar now.").wait_for()
        assert session.generation.digest != first
        assert not page.mistakes


async def test_messages_expire_and_an_error_is_not_overtaken(browse, tmp_path):
    async with running_server() as (_, url):
        page = await browse(url)
        await page.clock.install()
        (tmp_path / "photo.heic").write_bytes(b"")
        cv2.imwrite(str(tmp_path / "other.png"), np.full((90, 90, 3), 200, np.uint8))
        for _ in range(2):
            await page.set_input_files("#portrait", tmp_path / "other.png")
            await page.locator("#note", has_text="other.png is the avatar now.").wait_for()
            await page.set_input_files("#sound", tmp_path / "photo.heic")
            await page.locator("#error", has_text="HEIC").wait_for()
            await page.clock.fast_forward(7000)
            assert await page.locator("#note").is_hidden()
            assert await page.locator("#error").is_visible()
            await page.clock.fast_forward(14000)
            assert await page.locator("#error").is_hidden()
        await page.set_input_files("#sound", tmp_path / "photo.heic")
        await page.locator("#error button").click()
        assert await page.locator("#error").is_hidden()


async def test_a_refused_microphone_is_said_and_the_keyboard_is_enough(browse):
    async with running_server() as (_, url):
        page = await browse(url, refuse=True)
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.id") == "connect"
        await page.keyboard.press("Enter")
        await live(page)
        await holds(page, "document.activeElement.id === 'microphone'")
        await page.keyboard.press("Enter")
        await page.get_by_text("The microphone was refused").wait_for()
        assert await page.locator("#microphone[aria-pressed=false]").is_visible()


async def test_a_killed_server_is_noticed_and_the_page_comes_back(browse):
    async with server_process() as (process, url):
        page = await browse(url)
        await page.click("#connect")
        await live(page)
        await page.click("#microphone")
        await page.locator("#microphone[aria-pressed=true]").wait_for()
        await page.locator("#fps", has_text=re.compile("^2")).wait_for()
        process.kill()
        await not_live_within(page, 2.0)
        await page.locator("#status[data-state=waiting]").wait_for()
        assert await page.inner_text("#fps") == "–"
    async with server_process(int(url.rpartition(":")[2])):
        await live(page)
        # The microphone is still on, and is heard again.
        await page.locator(".stage.speaking").wait_for()
        assert not page.mistakes


async def test_a_server_that_hangs_is_noticed_and_the_page_comes_back(browse):
    async with server_process() as (process, url):
        page = await browse(url)
        await page.click("#connect")
        await live(page)
        await page.locator("#fps", has_text=re.compile("^2")).wait_for()
        process.send_signal(signal.SIGSTOP)
        await not_live_within(page, 2.0)
        await page.locator("#status[data-state=waiting]").wait_for()
        process.send_signal(signal.SIGCONT)
        await live(page)
        assert not page.mistakes


async def test_who_gives_up_is_not_connected_again(browse):
    async with running_server() as (session, url):
        page = await browse(url)
        await page.route("**/api/offer", lambda route: route.abort())
        await page.click("#connect")
        await page.locator("#reason", has_text="The server cannot be reached.").wait_for()
        await page.get_by_role("button", name=re.compile("Try now")).wait_for()
        await page.unroute("**/api/offer")
        await page.click("#give-up")
        assert await page.inner_text("#status") == "Not connected"
        assert await page.evaluate("document.activeElement.id") == "connect"
        assert b'avatard_sessions{kind="page"} 1.0' not in session.metrics.text()


async def test_without_a_seat_the_next_visitor_watches_until_one_is_free(browse, tmp_path):
    async with running_server() as (session, url):
        first, second = await browse(url), await browse(url)
        await first.click("#connect")
        await live(first)
        await second.click("#connect")
        await second.locator("#status[data-state=watching]").wait_for()
        await second.get_by_text("All seats are taken, so you watch.").wait_for()
        assert await second.locator("#microphone").is_disabled()
        await second.set_input_files("#sound", tmp_path / "voice.wav")
        await second.get_by_text("voice.wav will be spoken when a seat is free").wait_for()
        await first.set_input_files("#sound", tmp_path / "voice.wav")
        await second.locator(".stage.speaking").wait_for()
        await second.locator("#fps", has_text=re.compile("^2")).wait_for()
        await first.click("#disconnect")
        await live(second)
        await second.get_by_text("Speaking voice.wav").wait_for()
        await until(lambda: b'avatard_sessions{kind="whep"} 0.0' in session.metrics.text())
        assert await second.locator("#microphone").is_enabled()
        await second.close()
        await until(lambda: b'avatard_sessions{kind="page"} 0.0' in session.metrics.text())
        assert not first.mistakes and not second.mistakes


async def test_behind_a_proxy_the_page_finds_everything_and_uses_the_servers_ice_servers(browse, tmp_path):
    webrtc = Webrtc(ice_servers=("stun:127.0.0.1:9",))
    async with running_server(config(webrtc=webrtc)) as (_, url):
        page = await browse("about:blank")
        sockets: list[str] = []

        async def strip(route: Any) -> None:
            asked = route.request
            headers = asked.headers | {"x-forwarded-prefix": "/avatar"}
            path = asked.url.removeprefix(url).removeprefix("/avatar") or "/"
            await route.continue_(url=url + path, headers=headers)

        async def hang_up(socket: Any) -> None:
            sockets.append(socket.url)
            await socket.close()

        await page.route(f"{url}/avatar**", strip)
        await page.route(f"{url}/avatar/**", strip)
        await page.route_web_socket(re.compile("ws://"), hang_up)
        await page.add_init_script(
            "const set = RTCPeerConnection.prototype.setConfiguration;"
            "RTCPeerConnection.prototype.setConfiguration = function (wanted) {"
            "  window.wanted = wanted; return set.call(this, wanted); };"
        )
        await page.goto(f"{url}/avatar")  # without the slash
        await page.click("#connect")
        await live(page)
        assert await page.evaluate("wanted") == {"iceServers": [{"urls": ["stun:127.0.0.1:9"]}]}
        await page.set_input_files("#sound", tmp_path / "voice.wav")
        await until(lambda: sockets)
        assert sockets[0] == f"{url}/avatar/ws/audio".replace("http", "ws")
        assert not page.mistakes


async def test_the_seat_of_a_crashed_browser_is_given_away(browse):
    async with running_server() as (session, url):
        first, second = await browse(url), await browse(url)
        await first.click("#connect")
        await live(first)
        inspector = await first.context.browser.new_browser_cdp_session()
        processes = (await inspector.send("SystemInfo.getProcessInfo"))["processInfo"]
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process["id"], signal.SIGKILL)
        await second.click("#connect")
        await second.locator("#status:is([data-state=watching], [data-state=live])").wait_for()
        await live(second)
        assert b'avatard_sessions{kind="page"} 1.0' in session.metrics.text()


async def test_a_page_that_is_loaded_again_keeps_its_seat_and_its_copy_has_none(browse):
    async with running_server() as (session, url):
        page = await browse(url)
        await page.click("#connect")
        await live(page)
        seat = await page.evaluate("sessionStorage.getItem('avatard-seat')")
        copy = await page.context.new_page()
        await copy.goto(url)
        await copy.evaluate("(seat) => sessionStorage.setItem('avatard-seat', seat)", seat)
        await copy.click("#connect")
        await copy.locator("#status[data-state=watching]").wait_for()
        assert await page.locator("#status[data-state=live]").is_visible()
        await copy.close()
        # It may not even say good-bye.
        await page.evaluate("RTCPeerConnection.prototype.close = () => {}")
        await page.reload()
        await page.click("#connect")
        await live(page)
        assert await page.evaluate("sessionStorage.getItem('avatard-seat')") != seat
        await until(lambda: b'avatard_sessions{kind="page"} 1.0' in session.metrics.text())


async def test_pictures_that_repeat_are_not_counted(browse, monkeypatch):
    async with running_server() as (session, url):
        figures = session.figures
        monkeypatch.setattr(session, "figures", lambda: figures() | {"pictures_per_second": 6.25})
        page = await browse(url)
        await page.click("#connect")
        await live(page)
        await page.locator("#fps", has_text=re.compile(r"^6\.[123]$")).wait_for()
        await page.get_by_text("The server is busy: it makes 6.25 different pictures a second, not 25.").wait_for()
        monkeypatch.undo()
        session.events.emit(Quality(pictures_per_second=25.0, motion_steps=4, video_steps=4))
        await page.locator("#busy").wait_for(state="hidden")
        await page.locator("#fps", has_text=re.compile("^2[45]")).wait_for()


async def test_the_picture_can_be_larger_apart_and_quiet(browse):
    async with running_server() as (_, url):
        page = await browse(url)
        await page.click("#connect")
        await live(page)
        await page.get_by_role("button", name="Full screen").click()
        await holds(page, "document.fullscreenElement?.id === 'stage'")
        await page.get_by_role("button", name="Full screen").click()
        await holds(page, "document.fullscreenElement === null")
        if await page.evaluate("document.pictureInPictureEnabled"):
            await page.get_by_role("button", name="Picture in picture").click()
            await holds(page, "document.pictureInPictureElement?.id === 'video'")
            await page.get_by_role("button", name="Picture in picture").click()
            await holds(page, "document.pictureInPictureElement === null")
        await page.get_by_role("button", name="Mute").click()
        assert await page.evaluate("document.querySelector('audio').muted")
        await page.get_by_role("slider", name="Volume").fill("0.3")
        sound = await page.evaluate("(({ muted, volume }) => ({ muted, volume }))(document.querySelector('audio'))")
        assert sound == {"muted": False, "volume": 0.3}
        # The stage has the shape of the video, whatever that is.
        await page.evaluate(
            """() => {
              const canvas = Object.assign(document.createElement("canvas"), { width: 360, height: 540 });
              setInterval(() => canvas.getContext("2d").fillRect(0, 0, 10, 10), 50);
              document.querySelector("video").srcObject = canvas.captureStream(20);
            }"""
        )
        shape = "(({ width, height }) => height / width)(document.querySelector('#stage').getBoundingClientRect())"
        await holds(page, f"Math.abs({shape} - 1.5) < 0.01")
        assert not page.mistakes


async def test_every_control_has_a_name_and_the_page_fits_a_phone(browse):
    async with running_server() as (_, url):
        page = await browse(url)
        await page.set_viewport_size({"width": 390, "height": 844})
        await page.click("#connect")
        await live(page)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        names = await page.evaluate(
            """() => [...document.querySelectorAll("button, input, select, video, progress")].map((control) =>
              control.ariaLabel || control.labels?.[0]?.innerText || control.innerText ||
              control.id + " has no name")"""
        )
        assert not [name for name in names if "has no name" in name]
        small = await page.evaluate(
            """() => [...document.querySelectorAll("button, select, input")].filter((control) =>
              control.offsetParent && control.getBoundingClientRect().height < 28).map(({ id }) => id)"""
        )
        assert not small
        await page.emulate_media(reduced_motion="reduce")
        assert await page.evaluate("getComputedStyle(document.querySelector('#stage')).transitionDuration") == "0s"


async def test_without_the_token_the_page_asks_for_it(browse):
    async with running_server(config(server=Server(port=0, token="s3cret"))) as (_, url):
        page = await browse(url)
        await page.get_by_label("Token").fill("wrong")
        await page.get_by_role("button", name="Open the page").click()
        await page.get_by_text("This is not the token of this server.").wait_for()
        await page.get_by_label("Token").fill("s3cret")
        await page.keyboard.press("Enter")
        await page.click("#connect")
        await live(page)
        assert page.url == f"{url}/", "the token does not stay in the address"
        await page.reload()
        await page.locator("#connect").wait_for()


async def test_a_token_in_the_address_is_enough(browse):
    async with running_server(config(server=Server(port=0, token="s3cret"))) as (_, url):
        page = await browse(f"{url}/?token=s3cret")
        await page.click("#connect")
        await live(page)


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
            assert max([(await record(page, 3)).fps for _ in range(3)]) >= 24
            await page.evaluate("client.stop()")
            await until(lambda: b'avatard_sessions{kind="whep"} 0.0' in session.metrics.text())
            assert not page.mistakes
        finally:
            await runner.cleanup()


async def test_the_player_of_a_matte_shows_the_page_through(browse):
    """A quarter of the test engine's portrait is transparent, a quarter half so."""
    files = web.Application()
    files.router.add_static("/", ROOT / "scripts" / "examples")
    runner = web.AppRunner(files, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        settings = config(picture=Picture(background="transparent"))
        async with running_server(settings) as (_, url):
            page = await browse(f"http://127.0.0.1:{runner.addresses[0][1]}/alpha_view.html?server={url}")
            await page.add_style_tag(content="body { background: rgb(0, 0, 255) !important }")
            await page.wait_for_function("document.querySelector('canvas').height === 256")
            await asyncio.sleep(0.5)
            shot = await page.locator("canvas").screenshot()
            picture = np.asarray(cv2.imdecode(np.frombuffer(shot, np.uint8), cv2.IMREAD_COLOR))[150, 32::64, ::-1]
            np.testing.assert_allclose(picture, [(0, 0, 255), (128,) * 3, (128,) * 3, (64, 64, 191)], atol=12)
            assert page.mistakes == []
    finally:
        await runner.cleanup()


async def test_a_room_has_a_page_of_its_own(browse):
    """Its networks run in a process of their own, as those of the default room."""
    async with running_server() as (session, url), aiohttp.ClientSession() as http:
        async with http.post(f"{url}/api/rooms", json={"end_with_last_client": True}) as response:
            made = await response.json()
            assert response.status == 201
        home = url + made["urls"]["page"]
        page = await browse(f"{home}?token={made['token']}")
        await page.click("#connect")
        await live(page)
        assert page.url == home, "the token does not stay in the address"
        await holds(page, "document.querySelector('video').videoWidth === 256")
        async with http.get(f"{home}api/status", headers={"Authorization": f"Bearer {made['token']}"}) as response:
            assert (await response.json())["clients"] == 1
        assert not session.playout.playing, "nobody watches the default room"
        await page.reload()
        await page.click("#connect")
        await live(page)
        async with http.delete(f"{url}/api/rooms/{made['id']}") as response:
            assert response.status == 204
        await page.get_by_text("This room asks for its token, or it has ended.").wait_for()
        assert not page.mistakes
