from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from avatard.engine.background import Background, BackgroundError
from avatard.engine.compositor import Compositor
from avatard.engine.framing import frame_identity
from avatard.engine.identity import Identity
from avatard.frame import Frame, HeadPose
from avatard.media.image_file import ImageError
from avatard.models.face.matte import Matting, foreground
from avatard.models.mcvdm.decoder import Layers
from tests.support.faces import PORTRAIT, networks, portrait

GREEN = (0, 200, 40)


@pytest.fixture(scope="module")
def identity() -> Identity:
    return Identity.load(PORTRAIT, mesh=networks())


def still(flow: float = 0.0) -> Layers:
    moved = np.full((2, 64, 64), flow * 2 / 256, np.float32)
    window = (slice(56, 232), slice(40, 216))
    return Layers(moved, np.zeros((176, 176, 3), np.uint8), np.full((176, 176), 255, np.uint8), window)


def test_the_photographs_own_background_is_kept():
    assert Background.of("keep") is None


def test_a_colour_stands_behind_the_person(identity):
    one = Compositor(identity, frame_identity(identity, "head", 512), Background.of("#00C828"))
    for corner in (one.still[:40, :40], one.still[:40, -40:]):
        np.testing.assert_allclose(corner.reshape(-1, 3), np.broadcast_to(GREEN, (1600, 3)), atol=2)
    kept = Compositor(identity, frame_identity(identity, "head", 512))
    middle = slice(180, 300), slice(200, 300)
    np.testing.assert_allclose(one.still[middle].astype(int), kept.still[middle].astype(int), atol=3)


def test_the_background_stands_still_when_the_head_moves(identity, tmp_path):
    y, x = np.mgrid[:300, :200]
    stripes = np.repeat(np.where(x // 5 % 2, 220, 20).astype(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(stripes).save(tmp_path / "wall.png")
    background = Background.of(str(tmp_path / "wall.png"))
    one = Compositor(identity, frame_identity(identity, "head", 512), background)
    rest, moved = one.frame(still()), one.frame(still(6.0))
    assert rest.shape == (484, 484, 3)
    np.testing.assert_array_equal(rest[60:200, :80], moved[60:200, :80])
    assert np.abs(rest[200:300, 200:300].astype(int) - moved[200:300, 200:300]).mean() > 2


def test_the_photographs_own_alpha_is_the_matte(tmp_path):
    height, width, _ = portrait().shape
    alpha = np.zeros((height, width), np.uint8)
    cv2.circle(alpha, (width // 2, height // 2), 110, 255, -1)
    Image.fromarray(np.dstack([portrait(), alpha])).save(tmp_path / "cut.png")
    cut = Identity.load(tmp_path / "cut.png", mesh=networks())
    assert cut.alpha is not None and cut.alpha.shape == (height, width)
    one = Compositor(cut, frame_identity(cut, "photo", 512), Background.of("#00C828"))
    np.testing.assert_allclose(one.still[2:10, 2:10].reshape(-1, 3), np.broadcast_to(GREEN, (64, 3)), atol=2)
    # No white of the file's transparent parts around the cut.
    edge = one.still[240, 470:500].astype(int)
    assert not ((edge > 215).all(axis=1)).any()


def test_a_portrait_that_is_wholly_transparent_is_refused(tmp_path):
    Image.fromarray(np.dstack([portrait(), np.zeros(portrait().shape[:2], np.uint8)])).save(tmp_path / "nobody.png")
    with pytest.raises(ImageError, match=r"nobody\.png is transparent everywhere: there is nothing to show$"):
        Identity.load(tmp_path / "nobody.png", mesh=networks())


def test_without_a_background_frames_have_alpha(identity):
    one = Compositor(identity, frame_identity(identity, "head", 512), Background.of("transparent"))
    assert one.still.shape == (484, 484, 4)
    frame = one.frame(still(4.0))
    assert frame.shape == (484, 484, 4)
    assert frame[:40, :40, 3].max() < 30 and frame[200:300, 200:300, 3].min() > 225
    head = HeadPose((0, 0, 0, 1), (0, 0, 0), 1)
    shown = Frame(frame, np.zeros((68, 3), np.float32), np.zeros(52, np.float32), head).rgb
    assert shown.shape == (484, 484, 3)
    assert np.ptp(shown[:32, :32].astype(int), axis=2).max() < 30 and shown[:32, :32].min() > 170, "grey"
    np.testing.assert_allclose(shown[200:300, 200:300].astype(int), frame[200:300, 200:300, :3].astype(int), atol=30)


def test_the_room_behind_a_transparent_person_is_not_in_the_pixels(identity):
    one = Compositor(identity, frame_identity(identity, "head", 512), Background.of("transparent"))
    for frame in (one.still, one.frame(still(4.0))):
        hidden = cv2.erode((frame[..., 3] == 0).view(np.uint8), np.ones((19, 19), np.uint8)) > 0
        hidden[460:] = False  # below the frame the shoulders go on
        assert hidden.mean() > 0.2
        assert np.ptp(frame[hidden][:, :3].astype(int), axis=0).max() <= 2


def test_the_matte_moves_with_the_head(identity):
    one = Compositor(identity, frame_identity(identity, "head", 512), Background.of("transparent"))
    rest, moved = one.frame(still())[..., 3].astype(int), one.frame(still(6.0))[..., 3].astype(int)
    ends = [np.argmax(alpha[180:240, ::-1] > 128, axis=1).mean() for alpha in (rest, moved)]
    assert 8 < ends[1] - ends[0] < 20


def test_backgrounds_that_cannot_be_used_are_one_line(tmp_path):
    with pytest.raises(BackgroundError, match="picture.background = '#12345': expected a colour such as #20A040"):
        Background.of("#12345")
    expected = "expected keep, transparent, a colour such as #20A040 or a picture file$"
    with pytest.raises(BackgroundError, match=rf"^picture\.background = '.*wall\.png': no such file; {expected}"):
        Background.of(str(tmp_path / "wall.png"))
    with pytest.raises(BackgroundError, match=r"^picture\.background: .* is a folder; give the path of a picture$"):
        Background.of(str(tmp_path))
    (tmp_path / "wall.txt").write_text("brick")
    with pytest.raises(BackgroundError, match=r"^picture\.background: .*wall\.txt is not a picture that can be read"):
        Background.of(str(tmp_path / "wall.txt"))


@pytest.mark.parametrize("size", [(30, 20), (400, 100), (100, 400), (640, 480)])
def test_a_picture_covers_the_whole_frame(size):
    picture = np.full((*size, 3), 90, np.uint8)
    filled = Background(picture, SimpleNamespace()).filled(320, 240)  # type: ignore[arg-type]
    assert filled is not None and filled.shape == (240, 320, 3) and (filled == 90).all()


def test_the_matte_is_of_the_person():
    matte = Matting()(portrait(), (150.0, 150.0))
    assert matte.shape == portrait().shape[:2] and 0 <= matte.min() and matte.max() <= 1
    assert matte[120:180, 120:180].min() > 0.95
    assert matte[:20, :60].max() < 0.05


def test_half_transparent_pixels_take_the_persons_colour():
    picture = np.full((40, 60, 3), (0, 0, 255), np.uint8)
    picture[:, :30] = (200, 50, 0)
    matte = np.zeros((40, 60), np.float32)
    matte[:, :28], matte[:, 28:32] = 1.0, 0.5
    picture[:, 28:32] = (100, 25, 128)
    clean = foreground(picture, matte)
    np.testing.assert_allclose(clean[:, 28:34].reshape(-1, 3), np.broadcast_to((200, 50, 0), (240, 3)), atol=3)
    np.testing.assert_array_equal(clean[:, :24], picture[:, :24])
