"""The networks of a process: all its rooms use them."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from avatard.config import Config, Speech
from avatard.models.atom.model import Atom
from avatard.models.mcvdm.layers import channels_last
from avatard.models.mcvdm.model import Mcvdm
from avatard.models.mcvdm.mouth_painter import MouthPainter
from avatard.models.speech import HubertFeatures, SpeechEncoder, WhisperFeatures


@dataclass(frozen=True)
class Networks:
    """The networks, and what they share."""

    speech: SpeechEncoder
    atom: Atom
    mcvdm: Mcvdm
    painter: MouthPainter | None
    decoding: Executor  # makes the layers of the next frames while a room composes these

    @classmethod
    def load(cls, config: Config) -> Networks:
        """Those of a configuration. Raises `UserError` where weights are missing or do not fit."""
        return cls(
            _speech(config.speech),
            Atom.load(config.motion.weights),
            Mcvdm.load(config.video.weights).for_inference(),
            _painter(config.video.mouth),
            ThreadPoolExecutor(1, "decode"),
        )


def _speech(config: Speech) -> SpeechEncoder:
    return HubertFeatures.load(config.weights) if config.encoder == "hubert" else WhisperFeatures.load(config.weights)


def _painter(weights: str) -> MouthPainter | None:
    if not weights:
        return None
    painter = MouthPainter.load(weights)
    channels_last(painter)
    return painter
