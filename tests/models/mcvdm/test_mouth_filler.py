import numpy as np
import pytest
import torch

from avatard.models.face.topology import INNER_LIP
from avatard.models.mcvdm.mouth_filler import Mouth, MouthFiller
from avatard.models.mcvdm.mouth_painter import MouthPainter, PainterConfig

TINY = PainterConfig(widths=(8, 12), full=4, code=3)
RING = np.array([[-40, 0], [-20, -14], [0, -16], [20, -14], [40, 0], [20, 14], [0, 16], [-20, 14]], float)


class White(MouthPainter):
    """Paints white, and remembers what it saw."""

    def __init__(self):
        super().__init__(TINY)
        self.seen: list[torch.Tensor] = []

    def forward(self, seen, code):
        self.seen.append(seen.clone())
        return torch.ones(len(seen), 3, *seen.shape[-2:])


def mouth(opening=1.0, centre=(250.0, 300.0), roll=0.0):
    landmarks = np.zeros((68, 3))
    turn = np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
    landmarks[INNER_LIP, :2] = (RING * (1, opening)) @ turn + centre
    return Mouth(landmarks, 116.0, roll)


@pytest.fixture
def frame():
    return np.random.default_rng(0).integers(0, 200, (512, 512, 3), dtype=np.uint8)


@pytest.mark.parametrize("roll", [-0.4, 0.0, 0.3])
def test_all_between_the_lips_is_painted_and_nothing_else(frame, roll):
    before = frame.copy()
    MouthFiller(White()).fill(frame, mouth(roll=roll))
    changed = (frame != before).any(axis=-1)
    assert changed[300, 250] and (frame[298:303, 240:261] == 255).all()
    y, x = np.nonzero(changed)
    offset = np.stack([x - 250, y - 300], axis=-1)
    assert np.abs(offset @ (np.cos(roll), np.sin(roll))).max() < 40 + 4
    assert np.abs(offset @ (-np.sin(roll), np.cos(roll))).max() < 16 + 5


def test_closed_lips_stay_as_they_are(frame):
    before = frame.copy()
    MouthFiller(White()).fill(frame, mouth(opening=0.03))
    assert (frame == before).all()


def test_painting_sets_in_softly():
    brightness = []
    for opening in (0.05, 0.1, 0.14, 0.2, 0.3):
        frame = np.zeros((512, 512, 3), np.uint8)
        MouthFiller(White()).fill(frame, mouth(opening))
        brightness.append(int(frame[300, 250, 0]))
    assert brightness == sorted(brightness)
    assert brightness[0] == 0 < brightness[2] < 255 == brightness[-1]


def test_only_what_the_decoder_painted_is_redone(frame):
    before = frame.copy()
    share = np.zeros((512, 512), np.float32)
    share[:, :250] = 1
    MouthFiller(White()).fill(frame, mouth(), share)
    assert (frame[298:303, 235:245] == 255).all()
    assert (frame[:, 252:] == before[:, 252:]).all()
    MouthFiller(White()).fill(frame, mouth(), np.zeros_like(share))
    assert (frame[:, 252:] == before[:, 252:]).all()


def test_a_mouth_beside_the_frame_is_no_error(frame):
    before = frame.copy()
    MouthFiller(White()).fill(frame, mouth(centre=(-300.0, 900.0)))
    assert (frame == before).all()


def test_hint_and_reference_are_given(frame):
    painter = White()
    MouthFiller(painter).fill(frame.copy(), mouth())
    MouthFiller(painter, reference=(frame, mouth(1.2))).fill(frame.copy(), mouth())
    without, with_one = painter.seen
    assert without[0, 4].max() == 1 and with_one[0, 4].max() == 1, "the hint's presence"
    assert not without[0, 6:].any()
    assert with_one[0, 9].max() == 1 and with_one[0, 6:9].std() > 0.1


def test_the_same_person_is_painted_the_same_way(frame):
    torch.manual_seed(0)
    painter = MouthPainter(TINY)
    with torch.no_grad():
        for parameter in painter.parameters():
            parameter.normal_(0, 0.1)
    made = []
    for seed in (1, 1, 2):
        made.append(frame.copy())
        MouthFiller(painter, seed).fill(made[-1], mouth())
    assert (made[0] == made[1]).all() and (made[0] != made[2]).any()
