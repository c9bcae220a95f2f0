"""The networks of a process, on their device. All sessions of the process use them, and on a GPU share their passes."""

from __future__ import annotations

import logging
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from avatard.config import Config, Speech
from avatard.engine.batch import MOST_SESSIONS, Shared
from avatard.engine.graph import CudaRecord, Graphed
from avatard.engine.hop import HopInputs, HopMade, LayerInputs, make_hop, make_layers
from avatard.engine.motion_stream import MotionInputs, make_motion
from avatard.models.atom.model import Atom
from avatard.models.device import choose_device, device_name, refused_when_full
from avatard.models.mcvdm.decoder import LayerTensors
from avatard.models.mcvdm.layers import channels_last
from avatard.models.mcvdm.model import Mcvdm
from avatard.models.mcvdm.mouth_filler import MouthInputs, make_mouths
from avatard.models.mcvdm.mouth_painter import MouthPainter
from avatard.models.precision import inference_dtype, narrowed
from avatard.models.speech import HubertFeatures, SpeechEncoder, WhisperFeatures

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passes:
    """Passes that sessions share; None where each session has its own."""

    motion: Shared[MotionInputs, torch.Tensor] | None = None
    hops: Shared[HopInputs, HopMade] | None = None
    layers: Shared[LayerInputs, LayerTensors] | None = None
    mouths: Shared[MouthInputs, torch.Tensor] | None = None


@dataclass(frozen=True)
class Networks:
    """The networks, where they run, and how sessions use them."""

    device: torch.device
    speech: SpeechEncoder
    atom: Atom
    mcvdm: Mcvdm
    painter: MouthPainter | None
    passes: Passes  # none on a processor
    decoding: Executor  # makes the layers of the next frames while a session composes these

    @classmethod
    def load(cls, config: Config) -> Networks:
        """Those of a configuration; the device is looked for before anything is loaded.

        Raises:
            DeviceError: there is no such device, or its memory is full.
            UserError: weights are missing or do not fit.
        """
        device = choose_device(config.inference.device)
        on_cpu = device.type == "cpu"
        if not on_cpu:
            precision = str(inference_dtype(device)).removeprefix("torch.")
            fields = {"device": str(device), "model": device_name(device), "precision": precision}
            logger.info("networks", extra=fields)
        with refused_when_full("the networks"):
            speech = _speech(config.speech, device)
            atom = Atom.load(config.motion.weights).to(device)
            mcvdm = Mcvdm.load(config.video.weights).for_inference(device)
            painter = _painter(config.video.mouth, device)
        passes = Passes() if on_cpu else shared_passes(atom, speech, mcvdm, painter)
        decoding = ThreadPoolExecutor(1 if on_cpu else MOST_SESSIONS, "decode")
        return cls(device, speech, atom, mcvdm, painter, passes, decoding)


def shared_passes(atom: Atom, speech: SpeechEncoder, mcvdm: Mcvdm, painter: MouthPainter | None) -> Passes:
    """Passes for all sessions of a process; on CUDA they are recorded."""

    def prepared(run: Any) -> Any:
        return Graphed(run, CudaRecord(mcvdm.device)) if mcvdm.device.type == "cuda" else run

    return Passes(
        Shared(prepared(partial(make_motion, atom, speech))),
        Shared(prepared(partial(make_hop, mcvdm))),
        Shared(prepared(partial(make_layers, mcvdm))),
        # Not recorded: small, and its windows have many sizes.
        None if painter is None else Shared(partial(make_mouths, painter)),
    )


def _speech(config: Speech, device: torch.device) -> SpeechEncoder:
    kind = HubertFeatures if config.encoder == "hubert" else WhisperFeatures
    return kind.load(config.weights).to(device)


def _painter(weights: str, device: torch.device) -> MouthPainter | None:
    if not weights:
        return None
    painter = MouthPainter.load(weights).to(device)
    channels_last(painter)
    if device.type != "cpu":
        narrowed(painter, device)
    return painter
