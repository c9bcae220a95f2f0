import numpy as np
import pytest
import torch

from avatard.models.face.topology import INNER_LIP
from avatard.models.mcvdm.mouth_filler import (
    Mouth,
    MouthFiller,
    MouthInputs,
    PaintShare,
    _without_detail,
    make_mouths,
)
from avatard.models.mcvdm.mouth_painter import MouthPainter, PainterConfig, blurred
from avatard.models.pixels import to_tensor

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


def mouth(opening=1.0, centre=(250.0, 300.0), roll=0.0, width=1.0):
    landmarks = np.zeros((68, 3))
    turn = np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
    landmarks[INNER_LIP, :2] = (RING * (width, opening)) @ turn + centre
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
    values = np.zeros((100, 100), np.float32)
    values[:, :50] = 1
    # Cells of two pixels, from x = 150 on: the share ends at x = 250.
    matrix = np.array([[2, 0, 150.5], [0, 2, 200.5]])
    MouthFiller(White()).fill(frame, mouth(), PaintShare(values, matrix))
    assert (frame[298:303, 235:245] == 255).all()
    assert (frame[:, 253:] == before[:, 253:]).all()
    MouthFiller(White()).fill(frame, mouth(), PaintShare(np.zeros_like(values), matrix))
    assert (frame[:, 253:] == before[:, 253:]).all()


def test_small_mouths_are_painted_in_small_windows(frame):
    painter = White()
    for opening in (0.3, 1.2, 2.4):
        MouthFiller(painter).fill(frame.copy(), mouth(opening, width=0.9))
    assert [tuple(seen.shape[-2:]) for seen in painter.seen] == [(48, 96), (64, 96), (96, 96)]


def test_mouths_filled_together_are_those_filled_alone(frame):
    """In windows of one size; closed ones are left out, and a frame keeps its own strength."""
    torch.manual_seed(0)
    painter = MouthPainter(TINY).eval()
    torch.nn.init.normal_(painter.paint.weight)
    mouths = [mouth(1.0), mouth(0.03), mouth(0.14), mouth(0.9, centre=(270.0, 290.0))]
    alone, together = [frame.copy() for _ in mouths], [frame.copy() for _ in mouths]
    for picture, one in zip(alone, mouths, strict=True):
        MouthFiller(painter).fill(picture, one)
    MouthFiller(painter).fill_all([(picture, one, None) for picture, one in zip(together, mouths, strict=True)])
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1
    assert (together[1] == frame).all() and (together[3] != frame).any()
    white = White()
    MouthFiller(white).fill_all([(frame.copy(), mouth(opening, width=0.9), None) for opening in (0.3, 2.4)])
    assert [tuple(seen.shape) for seen in white.seen] == [(2, 10, 96, 96)], "all windows are as large as the largest"


def test_a_hint_is_what_the_painter_was_trained_with(frame):
    window = frame[:96, :144]
    mask = np.zeros((96, 144), np.float32)
    mask[40:60, 30:110] = 1
    trained = blurred(to_tensor(window[None]), torch.from_numpy(mask)[None, None])[0].permute(1, 2, 0).numpy()
    given = _without_detail(window, mask) / 127.5 - 1
    assert np.abs(trained - given)[mask > 0].max() < 0.01


@pytest.mark.parametrize("turn", [0.0, 0.4])
def test_a_mouth_moves_with_its_picture(turn):
    matrix = np.array([[2 * np.cos(turn), -2 * np.sin(turn), 7], [2 * np.sin(turn), 2 * np.cos(turn), -3]])
    moved = mouth().after(matrix)
    assert moved.interocular_px == pytest.approx(232) and moved.roll == pytest.approx(turn)
    assert moved.opening == pytest.approx(mouth().opening)


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


def test_people_who_share_a_pass_get_their_own_mouths(frame):
    torch.manual_seed(0)
    painter = MouthPainter(TINY).eval()
    given: list[MouthInputs] = []

    def seen(inputs):
        given.append(inputs)
        return make_mouths(painter, inputs)

    for seed, opening in ((0, 1.0), (1, 1.1), (2, 0.9)):
        MouthFiller(painter, seed, mouths=seen).fill(frame.copy(), mouth(opening))
    together = make_mouths(painter, MouthInputs(*(torch.cat(parts) for parts in zip(*given, strict=True))))
    for made, inputs in zip(together, given, strict=True):
        torch.testing.assert_close(made, make_mouths(painter, inputs)[0], rtol=1e-5, atol=1e-5)
