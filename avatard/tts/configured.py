"""The synthesizer that the configuration asks for."""

from __future__ import annotations

from avatard.config import Tts
from avatard.tts.local import LocalSynthesizer
from avatard.tts.openai import OpenAiSynthesizer
from avatard.tts.synthesizer import Synthesizer


def configured_synthesizer(config: Tts) -> Synthesizer | None:
    """What speaks texts; None where nothing is configured.

    Raises:
        TtsUnavailableError: the program is not installed, or its model cannot be read.
    """
    if config.url:
        return OpenAiSynthesizer(config.url, config.key, config.model, config.voice, config.sample_rate_hz)
    return LocalSynthesizer(config.engine, config.voice) if config.engine else None
