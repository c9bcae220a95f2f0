"""Text to speech by an HTTP endpoint that is shaped like OpenAI's `/v1/audio/speech`; many servers are."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

import aiohttp

from avatard.frame import Samples
from avatard.media.wav_stream import WavStream
from avatard.protocols.json_text import parse_object
from avatard.tts.synthesizer import TtsError, TtsUnavailableError

PATH = "/v1/audio/speech"
CONNECT_SECONDS = 5.0
SILENT_SECONDS = 30.0
DEFAULT_VOICE = "alloy"  # the endpoint wants one
MAX_REASON_BYTES = 4096
MAX_REASON_CHARACTERS = 200
#: What is never raw samples or a WAV file; other types are told apart by their first bytes.
REFUSED_TYPES = ("text/", "application/json", "audio/mpeg", "audio/mp3", "audio/ogg", "audio/opus", "audio/aac")


class OpenAiSynthesizer:
    """Asks an endpoint for each sentence, and takes its samples as they come.

    Args:
        url: the endpoint, or its server's root.
        key: the bearer token; empty: none.
        model: the endpoint's name of the model.
        voice: unless a sentence asks for another.
        rate_hz: of the samples of `response_format: "pcm"`.
    """

    def __init__(self, url: str, key: str, model: str, voice: str, rate_hz: int) -> None:
        path = urlsplit(url).path
        self._url = url if path.strip("/") else url.rstrip("/") + PATH
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._model, self._voice, self._rate_hz = model, voice, rate_hz
        self._http: aiohttp.ClientSession | None = None

    async def speak(self, text: str, voice: str) -> AsyncGenerator[tuple[Samples, int]]:
        """See `Synthesizer`."""
        body = {
            "model": self._model,
            "input": text,
            "voice": voice or self._voice or DEFAULT_VOICE,
            "response_format": "pcm",
        }
        if self._http is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
            self._http = aiohttp.ClientSession(timeout=timeout, headers=self._headers)
        try:
            # Not elsewhere: the key belongs to this server.
            async with self._http.post(self._url, json=body, allow_redirects=False) as response:
                if response.status != 200:
                    raise TtsError(f"the TTS endpoint answers {response.status}{await _reason(response)}")
                if response.content_type.startswith(REFUSED_TYPES):
                    raise TtsError(f"the TTS endpoint answers {response.content_type}, expected PCM")
                sound = WavStream(self._rate_hz)
                async for data in response.content.iter_any():
                    samples = sound.push(data)
                    if len(samples):
                        yield samples, sound.rate_hz
        except ValueError as error:
            raise TtsError(f"the TTS endpoint: {error}") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = " ".join(str(error).split())[:MAX_REASON_CHARACTERS] or "it does not answer"
            raise TtsUnavailableError(f"the TTS endpoint cannot be used: {reason}") from None

    async def close(self) -> None:
        """See `Synthesizer`."""
        if self._http is not None:
            await self._http.close()
            self._http = None


async def _reason(response: aiohttp.ClientResponse) -> str:
    """What the endpoint says about its refusal, in one line."""
    text = (await response.content.read(MAX_REASON_BYTES)).decode(errors="replace")
    try:
        error = parse_object(text).get("error", text)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except ValueError:
        pass
    text = " ".join(text.split())[:MAX_REASON_CHARACTERS]
    return f": {text}" if text else ""
