import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avatard.models.evaluation import image_metrics
from avatard.models.face.topology import INNER_LIP, LEFT_EYE, MOUTH, OUTER_LIP, RIGHT_EYE


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def noise(rng, n=2, side=64):
    return rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def face(n=10):
    """68 points: eyes 50 px apart, a mouth 40 wide."""
    points = np.zeros((n, 68, 3))
    points[:, RIGHT_EYE, 0], points[:, LEFT_EYE, 0] = 100, 150
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    points[:, OUTER_LIP, 0], points[:, OUTER_LIP, 1] = 125 - 20 * np.cos(angle), 180 - 8 * np.sin(angle)
    points[:, INNER_LIP, :2] = 125, 180
    return points


def test_psnr_of_a_known_error_and_of_equal_pictures():
    black, grey = np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 51, np.uint8)
    assert image_metrics.psnr(grey, black) == pytest.approx(20 * np.log10(5))
    assert image_metrics.psnr(grey, grey) == np.inf


def test_the_mouth_box_is_the_lips_and_a_fifth_of_their_width():
    rows, columns = image_metrics.mouth_box(face(1)[0])
    assert (columns.start, columns.stop) == (97, 154)
    assert (rows.start, rows.stop) == (164, 197)


def test_mouth_psnr_sees_the_mouth_only(rng):
    points = face(1)
    target = noise(rng, 1, 256)
    outside, inside = target.copy(), target.copy()
    rows, columns = image_metrics.mouth_box(points[0])
    outside[:, : rows.start] //= 2
    inside[:, rows, columns] //= 2
    assert image_metrics.mouth_psnr(outside, target, points) == np.inf
    assert image_metrics.mouth_psnr(inside, target, points) < 15


@pytest.fixture
def inside():
    mask = np.zeros((1, 64, 64), bool)
    mask[:, 20:40, 10:50] = True
    return mask


def test_a_checkerboard_is_told_from_columns_and_rows(inside):
    y, x = np.indices((64, 64))
    for pattern, board, detail in (((x + y) % 2, 1.0, 0.0), (x % 2, 0.0, 1.0), (y % 2, 0.0, 0.0)):
        picture = np.repeat((100 + 51 * pattern).astype(np.uint8)[None, ..., None], 3, axis=-1)
        # Two grey levels 51 apart are 0.4 apart in [-1, 1]; a square of four has twice that, a quarter of it counts.
        assert image_metrics.checkerboard(picture, inside) == pytest.approx(0.2 * board, abs=1e-6)
        assert image_metrics.horizontal_detail(picture, inside) == pytest.approx(0.2 * detail, abs=1e-6)


def test_texture_is_judged_inside_only_and_not_in_small_mouths(rng, inside):
    picture = noise(rng, 1)
    picture[inside] = 128
    assert image_metrics.checkerboard(picture, inside) == 0
    small = np.zeros_like(inside)
    small[:, :7, :7] = True
    assert np.isnan(image_metrics.checkerboard(picture, small)).all()


def test_inner_lips_and_crops_of_mouths(rng):
    points = face(2)
    points[:, INNER_LIP, :2] += [[-12, 0], [-6, -5], [0, -6], [6, -5], [12, 0], [6, 5], [0, 6], [-6, 5]]
    points[1, :, 0] += 1000  # leaves the picture
    inside = image_metrics.inside_lips(points, 256, 256)
    assert inside[0, 180, 125] and not inside[0, 180, 145] and not inside[1].any()
    assert 150 < inside[0].sum() < 260
    pictures = noise(rng, 2, 256)
    crops = image_metrics.mouth_crops(pictures, points)
    assert (crops[0] == pictures[0, 156:204, 93:157]).all()
    assert (crops[1] == pictures[1, 156:204, 192:256]).all()


def test_the_mouth_box_of_a_face_outside_the_picture_is_not_negative():
    rows, columns = image_metrics.mouth_box(face(1)[0] - 1000)
    assert rows.start == columns.start == 0
    assert rows.stop >= 1 and columns.stop >= 1


def test_ssim_is_one_for_equal_pictures_and_keeps_contrast_apart_from_noise(rng):
    picture = cv2.GaussianBlur(noise(rng, 1)[0], (7, 7), 2)[None]
    brighter = np.clip(picture.astype(int) + 6, 0, 255).astype(np.uint8)
    assert image_metrics.ssim(picture, picture) == pytest.approx(1)
    assert image_metrics.ssim(brighter, picture) > 0.98
    assert image_metrics.ssim(noise(rng, 1), picture) < 0.2


def test_ssim_of_flat_pictures_is_the_luminance_term():
    a, b = np.full((1, 32, 32, 3), 100, np.uint8), np.full((1, 32, 32, 3), 200, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert image_metrics.ssim(a, b) == pytest.approx((2 * 100 * 200 + c1) / (100**2 + 200**2 + c1))


def bars(blur):
    """Vertical bars whose edges are about 5 · `blur` wide."""
    row = np.arange(256, dtype=np.float32) // 32 % 2 * 180 + 30
    picture = np.repeat(row[None], 256, axis=0)
    if blur:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), blur), np.float32)
    return np.repeat(picture.round().astype(np.uint8)[None, ..., None], 3, axis=-1)


def test_cpbd_falls_with_blur_from_one_to_nothing():
    scores = [image_metrics.cpbd(bars(blur))[0] for blur in (0, 0.4, 1.5, 3)]
    assert scores[0] == 1
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] == 0


def testedge_widths_count_the_pixels_between_the_extrema():
    ramp = np.clip(np.arange(64) - 20, 0, 5)[None].repeat(64, axis=0) * 30.0  # five steps up from column 20 to 25
    widths = image_metrics.edge_widths(ramp)
    assert (widths[:, 22] == 5).all()
    assert (image_metrics.edge_widths(ramp[:, ::-1].copy())[:, 41] == 5).all()
    assert (image_metrics.edge_widths(ramp.T.copy()) == 0).all()


def test_cpbd_of_a_flat_picture_is_undefined():
    assert np.isnan(image_metrics.cpbd(np.full((1, 128, 128, 3), 99, np.uint8))[0])


def test_cosine_of_equal_orthogonal_and_opposite_vectors():
    a = np.array([[3.0, 0], [0, 2], [-1, 0]])
    assert image_metrics.cosine(a, np.array([1.0, 0])) == pytest.approx([1, 0, -1])


def test_frechet_of_shifted_and_scaled_gaussians(rng):
    a = rng.normal(size=(4000, 3))
    a = (a - a.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(a.T))).T  # exactly standard
    assert image_metrics.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert image_metrics.frechet(a + [2, 0, 0], a) == pytest.approx(4)
    assert image_metrics.frechet(3 * a, a) == pytest.approx(3 * (3 - 1) ** 2)


def test_frechet_agrees_with_the_textbook_formula(rng):
    linalg = pytest.importorskip("scipy.linalg")
    a, b = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(150, 5))
    s, t = np.cov(a.T), np.cov(b.T)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s + t - 2 * linalg.sqrtm(s @ t).real)
    assert image_metrics.frechet(a, b) == pytest.approx(expected)


def test_frechet_needs_two_samples():
    with pytest.raises(ValueError, match="of 1 and 5 samples"):
        image_metrics.frechet(np.zeros((1, 4)), np.zeros((5, 4)))


def test_landmark_distances_are_in_per_cent_of_the_interocular_distance():
    target = face()
    moved = target.copy()
    moved[:, MOUTH, 0] += 5
    assert image_metrics.landmark_distances(moved, target, MOUTH) == pytest.approx([10] * 10)
    assert image_metrics.landmark_distances(moved, target) == pytest.approx([10 * 20 / 68] * 10)


def test_warped_differences_forgive_motion_and_see_flicker(rng):
    blurred = cv2.GaussianBlur(rng.normal(size=(160, 160, 3)), (0, 0), 3)
    texture = np.clip(128 + 60 * blurred / blurred.std(), 0, 255).astype(np.uint8)
    moving = np.stack([texture[:128, n : n + 128] for n in range(4)])
    flickering = np.stack([texture[:128, :128] // (1 + n % 2) for n in range(4)])
    plain = np.abs(np.diff(moving.astype(float), axis=0)).mean()
    assert image_metrics.warped_differences(moving).mean() < 0.25 * plain
    assert image_metrics.warped_differences(flickering).mean() > 10
    assert (image_metrics.warped_differences(moving[:1].repeat(3, axis=0)) < 0.05).all()


@given(st.integers(2, 12), st.lists(st.integers(1, 40), min_size=1), st.floats(1, 5))
def test_seam_ratio_is_the_size_of_the_jump_at_boundaries(hop, lengths, jump):
    runs = [np.where(np.arange(1, length + 1) % hop == 0, jump, 1.0) for length in [*lengths, 2 * hop]]
    assert image_metrics.seam_ratio(runs, hop) == pytest.approx(jump)


def test_seam_ratio_without_boundaries_or_motion_is_undefined():
    assert np.isnan(image_metrics.seam_ratio([np.ones(5), np.ones(7)], 8))
    assert np.isnan(image_metrics.seam_ratio([np.zeros(20)], 4))
