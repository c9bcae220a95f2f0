import numpy as np
import pytest

from avatard.models.face.arkit import ARKIT_NAMES
from avatard.models.face.arkit_solver import ArkitSolver, smoothed
from avatard.models.face.blendshapes import expression_basis
from avatard.models.face.topology import MIRROR_68
from tests.support.faces import morphable

UNSEEN = {name for name in ARKIT_NAMES if name.startswith(("eyeLook", "cheek", "tongue"))}


def solver() -> ArkitSolver:
    return ArkitSolver(morphable().mean_68, np.zeros((68, 3)))


def solve(**moves: float) -> dict[str, float]:
    """Coefficients of the mean face moved by a mixture of shapes."""
    basis = expression_basis(morphable().mean_68)
    moved = sum((weight * basis[name] for name, weight in moves.items()), np.zeros((68, 3)))
    return dict(zip(ARKIT_NAMES, solver()(moved).tolist(), strict=True))


def moved(points: list[int], x: float = 0, y: float = 0) -> dict[str, float]:
    landmarks = np.zeros((68, 3))
    landmarks[points] += [x, y, 0]
    return dict(zip(ARKIT_NAMES, solver()(landmarks).tolist(), strict=True))


def test_the_names_are_apples_52_in_order():
    assert len(ARKIT_NAMES) == len(set(ARKIT_NAMES)) == 52
    assert ARKIT_NAMES[0] == "eyeBlinkLeft" and ARKIT_NAMES[17] == "jawOpen" and ARKIT_NAMES[51] == "tongueOut"
    assert len(UNSEEN) == 12
    assert set(expression_basis(morphable().mean_68)) == set(ARKIT_NAMES) - UNSEEN


def test_the_face_at_rest_has_no_coefficients():
    person = np.random.default_rng(0).normal(0, 0.02, (68, 3))
    solve_person = ArkitSolver(morphable().mean_68, person)
    np.testing.assert_array_equal(solve_person(person), np.zeros(52, np.float32))


@pytest.mark.parametrize("name", sorted(set(ARKIT_NAMES) - UNSEEN))
def test_each_shape_is_recognised_as_itself(name):
    found = solve(**{name: 1.0})
    assert found[name] > 0.5
    assert max(found, key=found.__getitem__) == name
    assert all(found[other] == 0 for other in UNSEEN)


def test_a_lowered_jaw_opens_the_jaw_and_closing_lips_are_told_apart():
    jaw = solve(jawOpen=0.6)
    assert jaw["jawOpen"] == pytest.approx(0.6, abs=0.05) and jaw["mouthClose"] < 0.05
    hummed = solve(jawOpen=0.6, mouthClose=0.6)
    assert hummed["jawOpen"] == pytest.approx(0.6, abs=0.1) and hummed["mouthClose"] > 0.5


def test_plain_motions_of_points_raise_the_right_coefficients():
    left_smile = moved([54, 64], x=0.1, y=-0.12)
    assert left_smile["mouthSmileLeft"] > 0.3 and left_smile["mouthSmileRight"] < 0.05
    inner_brows = moved([20, 21, 22, 23], y=-0.12)
    assert inner_brows["browInnerUp"] > 0.5 and inner_brows["browDownLeft"] < 0.15
    assert moved([22, 23, 24, 25], y=0.08)["browDownLeft"] > 0.5
    lower_lip = moved([55, 56, 57, 58, 59, 65, 66, 67], y=0.1)
    assert min(lower_lip["mouthLowerDownLeft"], lower_lip["mouthLowerDownRight"]) > 0.4
    assert moved([*range(48, 68)], x=0.12)["mouthLeft"] > 0.6


def test_lids_blink_each_for_itself():
    face = morphable().mean_68
    landmarks = np.zeros((68, 3))
    landmarks[[43, 44]] = 0.6 * (face[[47, 46]] - face[[43, 44]])  # the mesh never shuts an eye further
    found = dict(zip(ARKIT_NAMES, solver()(landmarks).tolist(), strict=True))
    assert found["eyeBlinkLeft"] > 0.8 and found["eyeBlinkRight"] < 0.05


def test_a_mirrored_face_swaps_left_and_right():
    rng = np.random.default_rng(1)
    basis = expression_basis(morphable().mean_68)
    landmarks = sum((rng.uniform(0, 0.5) * shape for shape in basis.values()), np.zeros((68, 3)))
    straight, mirrored = (
        dict(zip(ARKIT_NAMES, solver()(each).tolist(), strict=True))
        for each in (landmarks, landmarks[MIRROR_68] * [-1, 1, 1])
    )
    for name, value in straight.items():
        other = name.replace("Left", "#").replace("Right", "Left").replace("#", "Right")
        assert mirrored[other] == pytest.approx(value, abs=0.05), name


def test_batches_equal_single_frames_and_stay_in_range():
    rng = np.random.default_rng(2)
    landmarks = rng.normal(0, 0.05, (3, 4, 68, 3))
    found = solver()(landmarks)
    assert found.shape == (3, 4, 52) and found.dtype == np.float32
    assert (found >= 0).all() and (found <= 1).all()
    np.testing.assert_array_equal(found[1, 2], solver()(landmarks[1, 2]))


def test_the_gain_scales_all_but_blinks():
    basis = expression_basis(morphable().mean_68)
    landmarks = 0.3 * (basis["jawOpen"] + basis["eyeBlinkLeft"])
    one, two = (ArkitSolver(morphable().mean_68, np.zeros((68, 3)), gain)(landmarks) for gain in (1, 2))
    jaw, blink = ARKIT_NAMES.index("jawOpen"), ARKIT_NAMES.index("eyeBlinkLeft")
    assert two[jaw] == pytest.approx(2 * one[jaw]) and two[blink] == one[blink]
    assert ArkitSolver(morphable().mean_68, np.zeros((68, 3)), 3)(3 * landmarks).max() == 1


def test_smoothing_calms_quiver_and_delays_nothing():
    frames = np.arange(80)
    jaw = 0.5 + 0.3 * np.sin(2 * np.pi * frames / 10)  # syllables
    quiver = np.where(frames % 2, 0.05, -0.05)
    weights = np.repeat((jaw + quiver)[:, None], 52, axis=1).astype(np.float32)
    hops, before = [], None
    for hop in np.split(weights, 10):
        hops.append(smoothed(hop, before))
        before = hop[-1]
    found = np.concatenate(hops)[:, 0]
    inner = np.array([n % 8 != 7 for n in frames]) & (frames > 0)  # a hop's last frame waits for nobody
    np.testing.assert_allclose(found[inner], (0.5 + (jaw - 0.5) * (1 + np.cos(2 * np.pi / 10)) / 2)[inner], atol=1e-6)
    np.testing.assert_array_equal(found[~inner], weights[~inner, 0])


def test_pressed_lips_are_told_from_rolled_ones():
    pressed = solve(mouthPressLeft=0.6, mouthPressRight=0.6)
    assert pressed["mouthPressLeft"] > 1.5 * max(pressed["mouthRollLower"], pressed["mouthRollUpper"])
