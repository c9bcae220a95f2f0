"""Passes on another device than the CPU: nothing on their way leaves it. Where there is a GPU, also what they make."""

import msgspec
import numpy as np
import pytest
import torch

from avatard.config import Config, Inference, Stream
from avatard.engine.engine import make_engine
from avatard.engine.hop import HopInputs, LayerInputs, make_hop, make_layers
from avatard.engine.motion_stream import MotionInputs, make_motion
from avatard.models.atom.model import Atom, AtomConfig
from avatard.models.mcvdm.landmark_encoder import Geometry
from avatard.models.mcvdm.latent import Planes
from avatard.models.mcvdm.model import Mcvdm
from avatard.models.mcvdm.mouth_painter import MouthPainter, PainterConfig
from avatard.models.speech import WhisperConfig, WhisperFeatures
from avatard.portrait import Portrait
from avatard.timebase import SAMPLES_PER_FRAME
from tests.support.faces import PORTRAIT
from tests.support.other_device import META, OneDevice, without_autocast  # noqa: F401 - a fixture
from tests.support.tiny_mcvdm import TINY

B, HOP, CLIP, FADE = 3, 3, 8, 2


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


@pytest.mark.usefixtures("without_autocast")
def test_video_is_made_on_its_device():
    model = Mcvdm(TINY).eval().requires_grad_(False).for_inference(META)
    assert model.device == META
    with OneDevice(), torch.inference_mode():
        encoding = model.encode_identity(numbers(B, 3, 256, 256))
        geometry = Geometry(numbers(B, 68, 2), numbers(B, HOP, 68, 2), numbers(B, HOP, 68, 2))
        noise = Planes(*(numbers(B, 4, rows, 32) for rows in (32, CLIP, CLIP)))
        first = HopInputs(geometry, encoding.small, encoding.latent, noise, numbers(B, FADE), None)
        state = make_hop(model, first, 2).state
        made = make_hop(model, first._replace(before=state), 1)
        enlarged = numbers(B, 3, 512, 512, dtype=torch.uint8)
        layers = make_layers(model, LayerInputs(made.volumes, encoding.portrait, made.flow, enlarged))
        shown = model.autoencoder.render_uint8(made.volumes, encoding.portrait, made.flow, enlarged)
    assert layers.painted.shape == (B, HOP + FADE, 176, 176, 3) and layers.painted.device == META
    assert shown.shape == (B, HOP + FADE, 3, 256, 256)


@pytest.mark.usefixtures("without_autocast")
def test_motion_and_mouths_are_made_on_their_device():
    atom = Atom(AtomConfig(speech_dim=48, width=24, depth=1, rest_depth=1, heads=2)).eval().to(META)
    speech = WhisperFeatures(WhisperConfig(width=24, heads=2, layers=1)).eval().to(META)
    config, painter = atom.config, MouthPainter(PainterConfig(widths=(8, 12), full=4, code=3)).eval().to(META)
    window = numbers(B, config.audio_frames * SAMPLES_PER_FRAME)
    with OneDevice():
        inputs = MotionInputs(
            window, numbers(B, 2, 68, 3), numbers(B, config.frames - HOP, 68, 3), numbers(B, HOP, 68, 3)
        )
        assert make_motion(atom, speech, inputs, 2, 2).shape == (B, HOP, 68, 3)
        assert painter(numbers(B, 10, 96, 144), numbers(B, 3)).device == painter.device == META


def test_the_other_device_tells_what_a_gpu_would_refuse():
    with OneDevice():
        with pytest.raises(AssertionError, match="mixes devices"):
            numbers(3) + torch.zeros(3)
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
            numbers(3).cpu()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sessions", [1, 2, 5])
def test_a_gpu_shows_what_the_processor_shows(sessions):
    """The networks that ship, on both; several sessions at once."""
    from concurrent.futures import ThreadPoolExecutor

    stream = Stream()
    sound = (0.1 * np.random.default_rng(0).standard_normal(40 * SAMPLES_PER_FRAME)).astype(np.float32)

    def frames(device: str, count: int) -> list[np.ndarray]:
        engine = make_engine(msgspec.structs.replace(Config(stream=stream), inference=Inference(device=device)))
        streams = []
        for _ in range(count):
            engine.identify(Portrait.read(PORTRAIT))
            streams.append(engine.begin(0))

        def run(one):
            clips = [clip for motion in one.motion(sound) for clip in one.generate(motion)]
            return np.stack([f.pixels for clip in clips for _, made in one.render(clip) for f in made])

        with ThreadPoolExecutor(count) as threads:
            return list(threads.map(run, streams))

    (on_cpu,), (alone,) = frames("cpu", 1), frames("cuda", 1)
    for made in frames("cuda", sessions):
        for expected, mean, most in ((on_cpu, 0.5, 24), (alone, 0.1, 8)):
            difference = np.abs(made.astype(int) - expected.astype(int))
            assert difference.mean() < mean
            assert np.quantile(difference, 0.999) < most
