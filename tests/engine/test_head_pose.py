import av
import numpy as np
import pytest

from avatard.engine.head_pose import DrivingPose, IdlePose, PoseVideoError
from avatard.engine.identity import Identity
from avatard.engine.idle_motion import Idle
from avatard.models.face.morphable import MorphableModel
from tests.support.faces import PORTRAIT

STEP = 4  # pixels a frame


@pytest.fixture(scope="module")
def identity() -> Identity:
    return Identity.load(PORTRAIT)


def write_video(path, pictures):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def test_a_driving_video_moves_the_head_and_goes_back_and_forth(identity, tmp_path):
    path = tmp_path / "drive.mp4"
    write_video(path, [np.roll(identity.portrait, STEP * n, axis=1) for n in range(8)])
    drive = DrivingPose(path)
    base = identity.pose
    shifts = [float((drive(base, n).translation - base.translation)[0]) for n in range(15)]
    assert shifts[0] == pytest.approx(0, abs=0.1)
    assert STEP * 3 < shifts[7] < STEP * 8, "smoothed, so a little behind"
    assert all(later > earlier for earlier, later in zip(shifts[:7], shifts[1:8], strict=True))
    assert shifts[8:15] == pytest.approx(shifts[6::-1]), "then backwards, without a jump"
    assert abs(drive(base, 7).yaw_pitch_roll - base.yaw_pitch_roll).max() < 6


def test_a_video_without_a_face_is_one_line(tmp_path):
    path = tmp_path / "empty.mp4"
    write_video(path, [np.full((256, 256, 3), 90, np.uint8)] * 3)
    with pytest.raises(PoseVideoError, match=r"empty\.mp4: no face found in the driving video"):
        DrivingPose(path)


def idle_pose(identity: Identity, seed: int, motion: float) -> IdlePose:
    return IdlePose(Idle(MorphableModel.load().mean_68 + identity.neutral, seed), motion)


def test_idle_motion_is_small_seeded_and_can_be_switched_off(identity):
    still, lively, again, other = (
        idle_pose(identity, 1, 0.0),
        idle_pose(identity, 1, 1.0),
        idle_pose(identity, 1, 1.0),
        idle_pose(identity, 2, 1.0),
    )
    base = identity.pose
    np.testing.assert_allclose(still(base, 77).rotation, base.rotation, atol=1e-9)
    np.testing.assert_allclose(still(base, 77).translation, base.translation)
    frames = range(0, 500, 10)
    turned = np.array([lively(base, n).yaw_pitch_roll - base.yaw_pitch_roll for n in frames])
    assert 0.3 < turned.std() < 6 and abs(turned).max() < 12
    np.testing.assert_array_equal(lively(base, 123).rotation, again(base, 123).rotation)
    assert not np.allclose(lively(base, 123).rotation, other(base, 123).rotation)
    half = idle_pose(identity, 1, 0.5)
    angle = [np.arccos((np.trace(pose(base, 60).rotation @ base.rotation.T) - 1) / 2) for pose in (lively, half)]
    assert angle[1] == pytest.approx(angle[0] / 2, rel=0.01)
