"""The page's text box and captions, in a real Chromium."""

import asyncio
import os
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np

from avatard.config import Tts
from avatard.tts.synthesizer import TtsError
from tests.gateways.test_page import browse, engine, live  # noqa: F401 - fixtures
from tests.support.serving import beeps, config, running_server, until


class Beeper:
    """A synthesizer: 2 s for each sentence."""

    async def speak(self, text: str, voice: str) -> AsyncGenerator[tuple[np.ndarray, int]]:
        if "fail" in text:
            raise TtsError("it broke")
        yield beeps(2), 16_000

    async def close(self) -> None:
        pass


async def test_a_text_is_typed_said_and_captioned(browse, monkeypatch):  # noqa: F811
    def beeper(tts: Tts) -> Any:
        return Beeper()

    monkeypatch.setattr("avatard.gateways.say.configured_synthesizer", beeper)
    async with running_server(config(tts=Tts(engine="espeak-ng"))) as (session, url):
        page = await browse(url)
        await page.locator("#say").wait_for()
        await page.fill("#say-text", "Hello over there. I am your avatar.")
        assert await page.locator("#say-send").is_disabled()  # there is nobody who would hear it
        await page.click("#connect")
        await live(page)
        await page.press("#say-text", "Enter")
        await page.locator("#caption", has_text="Hello over there.").wait_for()
        assert await page.input_value("#say-text") == ""
        await page.locator("#caption", has_text="I am your avatar.").wait_for()
        if folder := os.environ.get("AVATARD_SCREENSHOTS"):
            await page.wait_for_timeout(300)
            await page.screenshot(path=f"{folder}/desktop.png")
        await page.click("#captions")
        assert await page.locator("#caption").is_hidden()
        await page.click("#captions")
        await page.click("#interrupt")
        await until(lambda: not session.speaking)
        await page.locator("#caption:text-is('')").wait_for(state="attached")
        await page.fill("#say-text", "This will fail.")
        await page.click("#say-send")
        await page.get_by_text("The server answers: it broke.").wait_for()
        assert await page.input_value("#say-text") == "This will fail."  # to be tried again
        await page.set_viewport_size({"width": 390, "height": 844})
        await page.fill("#say-text", "One more sentence that is long enough for two lines of a small telephone.")
        await page.click("#say-send")
        await page.locator("#caption", has_text="One more").wait_for()
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert await page.evaluate("document.querySelector('#say-text').getBoundingClientRect().height >= 40")
        if folder:
            await page.wait_for_timeout(300)
            await page.screenshot(path=f"{folder}/phone.png", full_page=True)
        assert not page.mistakes


async def test_without_text_to_speech_there_is_no_box(browse):  # noqa: F811
    async with running_server() as (_, url):
        page = await browse(url)
        await page.click("#connect")
        await live(page)
        await asyncio.sleep(0)
        assert await page.locator("#say").is_hidden() and await page.locator("#caption").is_hidden()
        assert await page.locator("#captions").is_hidden()
