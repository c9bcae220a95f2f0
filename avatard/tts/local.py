"""Text to speech by a program of this machine: espeak-ng, flite or piper. Each sentence is a process of its own."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path

from avatard.frame import Samples
from avatard.media.wav_stream import WavStream
from avatard.tts.synthesizer import TtsError, TtsUnavailableError

READ_BYTES = 8192
SILENT_SECONDS = 30.0  # a program that gives nothing for so long is stopped
MAX_REASON_CHARACTERS = 200
FLITE_VOICE = "slt"  # its default is 8 kHz


class LocalSynthesizer:
    """Runs a program for each sentence.

    Args:
        engine: `espeak-ng`, `flite`, or `piper:MODEL` with MODEL an `.onnx` file and its `.onnx.json` beside it.
        voice: unless a sentence asks for another.

    Raises:
        TtsUnavailableError: the program is not installed, or the model cannot be read.
    """

    def __init__(self, engine: str, voice: str) -> None:
        self._name, _, self._model = engine.partition(":")
        self._voice = voice
        if shutil.which(self._name) is None:
            package = "pip install piper-tts" if self._name == "piper" else f"Debian: apt install {self._name}"
            raise TtsUnavailableError(f"{self._name} is not installed ({package})")
        self._rate_hz = _piper_rate(Path(self._model)) if self._name == "piper" else 0  # a WAV file's own

    async def speak(self, text: str, voice: str) -> AsyncGenerator[tuple[Samples, int]]:
        """See `Synthesizer`."""
        command, spoken = self._command(text, voice or self._voice)
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            raise TtsUnavailableError(f"{self._name} cannot be run: {error.strerror or error}") from None
        assert process.stdin and process.stdout and process.stderr
        try:
            process.stdin.write(spoken)
            process.stdin.close()
            sound = WavStream(self._rate_hz)
            async with asyncio.timeout(SILENT_SECONDS) as limit:
                while data := await process.stdout.read(READ_BYTES):
                    samples = sound.push(data)
                    limit.reschedule(None)  # whoever takes the samples may take their time
                    if len(samples):
                        yield samples, sound.rate_hz
                    limit.reschedule(asyncio.get_running_loop().time() + SILENT_SECONDS)
                reason = (await process.stderr.read()).decode(errors="replace")
                code = await process.wait()
        except TimeoutError:
            raise TtsError(f"{self._name} gave nothing for {SILENT_SECONDS:.0f} s") from None
        except ValueError as error:
            raise TtsError(f"{self._name}: {error}") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if code:
            reason = " ".join(reason.split())[-MAX_REASON_CHARACTERS:]
            raise TtsError(f"{self._name} ended with code {code}{f': {reason}' if reason else ''}")

    async def close(self) -> None:
        """See `Synthesizer`."""

    def _command(self, text: str, voice: str) -> tuple[list[str], bytes]:
        """The command for a sentence, and its standard input. The text is no option, whatever it begins with."""
        line = f"{text}\n".encode()
        match self._name:
            case "espeak-ng":
                return ["espeak-ng", "--stdin", "--stdout", "-b", "1", *(["-v", voice] if voice else [])], line
            case "flite":  # it cannot write what it reads from a file to a pipe
                return ["flite", "-voice", voice or FLITE_VOICE, "-t", text, "-o", "/dev/stdout"], b""
            case _:
                speaker = ["--speaker", voice] if voice else []
                return ["piper", "--model", self._model, "--output-raw", *speaker], line


def _piper_rate(model: Path) -> int:
    """Hz of a model's samples. Raises `TtsUnavailableError`."""
    description = model.with_name(f"{model.name}.json")
    try:
        if not model.is_file():
            raise FileNotFoundError(2, "there is no such file", str(model))
        return int(json.loads(description.read_text(encoding="utf-8"))["audio"]["sample_rate"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else f"{description} is damaged"
        raise TtsUnavailableError(f"piper's model cannot be used: {reason}") from None
