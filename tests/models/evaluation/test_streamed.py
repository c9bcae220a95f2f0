import numpy as np
import torch

from avatard.models.atom.model import AtomConfig
from avatard.models.evaluation.streamed import encode_windows, new_features, roll_out, serving_windows
from avatard.timebase import SAMPLES_PER_FRAME
from tests.support.tiny_atom import awake

CONFIG = AtomConfig(speech_dim=1, audio_frames=12, frames=8, width=24, depth=1, rest_depth=1, heads=2)


class Levels:
    """A speech encoder whose only feature is the level of each frame."""

    dim = 1

    def __call__(self, audio: torch.Tensor) -> torch.Tensor:
        return audio.view(len(audio), -1, SAMPLES_PER_FRAME).mean(-1, keepdim=True)


def test_every_frame_is_new_in_one_window():
    samples = np.repeat(np.arange(1.0, 11.0), SAMPLES_PER_FRAME)
    windows = list(serving_windows(samples, 12, hop=4, lookahead=2))
    assert [window[-1] for window in windows] == [6, 10, 0]  # what is heard ends the look-ahead after the hop
    features = encode_windows(Levels(), samples, 12, hop=4, lookahead=2)
    assert new_features(features, 10, hop=4, lookahead=2)[:, 0].tolist() == list(range(1, 11))


def test_motion_continues_what_was_emitted_unless_it_is_made_afresh():
    atom, reference = awake(CONFIG), torch.zeros(2, 2, 68, 3)
    window = torch.randn(2, 12, 1, generator=torch.Generator().manual_seed(0))
    continued = roll_out(atom, [window, window], reference, steps=1, lookahead=2, hop=4)
    afresh = roll_out(atom, [window, window], reference, steps=1, lookahead=2, hop=4, prefix=False)
    assert continued.shape == afresh.shape == (2, 8, 68, 3)
    assert torch.equal(afresh[:, :4], afresh[:, 4:]) and not torch.equal(continued[:, :4], continued[:, 4:])
