"""Texts, spoken: `POST /api/say` gives a text to the configured synthesizer, and what it makes to a speaker.

The texts are made into sound one after the other, in the order in which they came. An interrupt ends all of them, and a
client that leaves before its text can be heard ends its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Annotated, Any

import msgspec
import numpy as np
from aiohttp import hdrs, web

from avatard.config import VOICE, Tts
from avatard.errors import UserError
from avatard.frame import Samples
from avatard.protocols import events
from avatard.protocols.http_body import read_text
from avatard.protocols.json_text import parse_object
from avatard.protocols.tasks import cancel_and_wait
from avatard.session.session import Session
from avatard.session.speaker import MAX_ID_LENGTH, PushedSpeaker
from avatard.tts.configured import configured_synthesizer
from avatard.tts.sentences import one_line, sentences
from avatard.tts.synthesizer import TtsError, TtsUnavailableError

logger = logging.getLogger(__name__)

MAX_TEXTS = 8  # that are not all sound yet
MAX_BODY_BYTES = 256 * 1024
RETRY_SECONDS = 5
RUN_UP_SECONDS = 0.4  # gathered before the first is pushed: what comes in one piece is heard up to a hop sooner
LOOK_SECONDS = 0.1  # whether a client is still there
NO_TTS = (
    "there is no text to speech: start avatard with --tts espeak-ng, flite or piper:MODEL.onnx, or with --tts-url URL"
)


class SayError(UserError):
    """A text that is not spoken."""


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request."""

    text: str
    voice: Annotated[str, msgspec.Meta(pattern=VOICE)] = ""
    id: Annotated[str, msgspec.Meta(max_length=MAX_ID_LENGTH)] = ""


class SayGateway:
    """Speaks texts.

    Args:
        config: the section `tts`.
        session: the avatar.

    Raises:
        TtsUnavailableError: the program is not installed, or its model cannot be read.
    """

    def __init__(self, config: Tts, session: Session) -> None:
        self._config = config
        self._session = session
        self._synthesizer = configured_synthesizer(config)
        self._making = asyncio.Lock()  # held by the text that is made into sound
        self._unfinished: set[asyncio.Task[None]] = set()  # texts that are not all sound yet
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._unlisten = session.listen(self._on_event)

    def add_routes(self, app: web.Application) -> None:
        """Add `/api/say`."""
        app.router.add_post("/api/say", self._say)

    @property
    def status(self) -> dict[str, int] | None:
        """What a page must know; None where there is no text to speech."""
        return {"max_characters": self._config.max_characters} if self._synthesizer is not None else None

    async def close(self) -> None:
        """Stop speaking."""
        self._closing = True
        self._unlisten()
        await cancel_and_wait(self._tasks)
        if self._synthesizer is not None:
            await self._synthesizer.close()

    def _on_event(self, event: events.Event) -> None:
        if isinstance(event, events.Interrupted):
            for task in self._unfinished:
                # A task that is cancelled before its first step would never close its speaker.
                asyncio.get_running_loop().call_soon(task.cancel)

    async def _say(self, request: web.Request) -> web.Response:
        if self._synthesizer is None:
            raise web.HTTPNotImplemented(text=NO_TTS) from SayError(NO_TTS, code="no-tts")
        text = await read_text(request, "application/json", MAX_BODY_BYTES)
        try:
            ask = _parse(text, self._config.max_characters)
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        if len(self._unfinished) >= MAX_TEXTS:
            busy = f"{MAX_TEXTS} texts wait to be spoken; try again in {RETRY_SECONDS} s"
            headers = {hdrs.RETRY_AFTER: str(RETRY_SECONDS)}
            raise web.HTTPServiceUnavailable(text=busy, headers=headers) from SayError(busy, code="full")
        speaker = self._session.open_speaker()
        name = speaker.begin(ask.id)
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._speak(speaker, name, ask, begun), name="say")
        self._tasks.add(task)
        self._unfinished.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            while not begun.done():
                await asyncio.wait({begun}, timeout=LOOK_SECONDS)
                if not begun.done() and (request.transport is None or request.transport.is_closing()):
                    begun.cancel()
                    task.cancel()
            begun.result()
        except asyncio.CancelledError:
            task.cancel()
            if not begun.cancelled():
                raise  # the server ends
            gone = "interrupted before its first sound"
            raise web.HTTPConflict(text=gone) from SayError(gone, code="interrupted", id=name)
        except TtsError as error:
            if isinstance(error, TtsUnavailableError):
                headers = {hdrs.RETRY_AFTER: str(RETRY_SECONDS)}
                raise web.HTTPServiceUnavailable(text=str(error), headers=headers) from error
            raise web.HTTPBadGateway(text=str(error)) from error
        return web.json_response({"id": name})

    async def _speak(self, speaker: PushedSpeaker, name: str, ask: Ask, begun: asyncio.Future[None]) -> None:
        """Make a text into sound, and wait until it was heard.

        Args:
            speaker: has begun the utterance.
            name: id of the utterance.
            ask: what to say.
            begun: is resolved with the first sound, or with the `TtsError` that comes before it.
        """
        task = asyncio.current_task()
        assert task is not None
        try:
            async with self._making:
                await self._make(speaker, ask, begun)
                speaker.flush()
            if not begun.done():
                begun.set_result(None)
        except TtsError as error:
            error.fields["id"] = name
            logger.warning("text to speech failed", extra={"reason": str(error)})
            if not begun.done():
                begun.set_exception(error)
            else:
                self._session.events.emit(events.Error(message=str(error), code=error.code, fields=error.fields))
        except asyncio.CancelledError:
            begun.cancel()
        except Exception as error:
            logger.exception("text to speech failed")
            if not begun.done():
                begun.set_exception(error)
        finally:
            self._unfinished.discard(task)
            await (speaker.abort() if self._closing else speaker.close())

    async def _make(self, speaker: PushedSpeaker, ask: Ask, begun: asyncio.Future[None]) -> None:
        assert self._synthesizer is not None

        def push(held: list[Samples], rate_hz: int) -> None:
            speaker.push_audio(np.concatenate(held), rate_hz)
            held.clear()
            if not begun.done():
                begun.set_result(None)

        held, rate_hz = list[Samples](), 0
        for sentence in sentences(ask.text):
            speaker.caption(sentence)
            async with contextlib.aclosing(self._synthesizer.speak(sentence, ask.voice)) as sound:
                async for samples, rate_hz in sound:
                    held.append(samples)
                    if begun.done() or sum(map(len, held)) >= RUN_UP_SECONDS * rate_hz:
                        push(held, rate_hz)
                        await speaker.room()
            if held:  # the first sentence is a short one
                push(held, rate_hz)


def _parse(text: str, max_characters: int) -> Ask:
    """The body of a request. Raises `ValueError`, in one line."""
    body: dict[str, Any] = parse_object(text)
    try:
        ask = msgspec.convert(body, Ask)
    except msgspec.ValidationError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f'{reason}; expected {{"text": "...", "voice": "..."}}') from None
    if not one_line(ask.text):
        raise ValueError('the text is empty; expected {"text": "..."}')
    if len(ask.text) > max_characters:
        raise ValueError(f"got {len(ask.text):,} characters, expected at most {max_characters:,} (tts.max_characters)")
    return ask
