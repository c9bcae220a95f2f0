"""VMC, Live Link Face and OpenSeeFace, as receivers understand them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from avatard.models.face.arkit import ARKIT_NAMES
from avatard.models.face.pose import rotation_matrix
from avatard.protocols.face_motion import part_of, rotation_of
from avatard.protocols.live_link_face import LiveLinkFaceEncoder
from avatard.protocols.network import TargetError, udp_target
from avatard.protocols.open_see_face import OpenSeeFaceEncoder
from avatard.protocols.vmc import Names, VmcEncoder
from tests.support.paths import ROOT
from tests.support.trackers import LiveLinkFrame, OpenSeeFace, VmcModel, face, osc_messages, unity_turn

FIXTURES = ROOT / "tests" / "fixtures"
ANGLES = st.floats(-45, 45)

#: Unity's character looks along z, its right is x and up is y. Where these point after its head was turned.
FORWARD, RIGHT, UP = np.array([0, 0, 1.0]), np.array([1.0, 0, 0]), np.array([0, 1.0, 0])


def vmc(motion, names="vrm0"):
    return VmcModel.of(VmcEncoder(names, ARKIT_NAMES)(motion))


def live_link(motion):
    (packet,) = LiveLinkFaceEncoder("Ava")(motion)
    return LiveLinkFrame.of(packet)


def open_see(motion):
    (packet,) = OpenSeeFaceEncoder()(motion)
    return OpenSeeFace.of(packet)


def captured():
    """The frame of the fixtures: everything is off its rest."""
    weights = {name: (n + 1) / 64 for n, name in enumerate(ARKIT_NAMES)}
    return face(20, 10, -5, {"jawOpen": 0.5, "mouthPucker": 0.25}, **weights)


def by_vmc(motion):
    return vmc(motion).head


def by_open_see(motion):
    return unity_turn(open_see(face()), open_see(motion))


@pytest.mark.parametrize("turned", [by_vmc, by_open_see], ids=["vmc", "openseeface"])
def test_a_unity_character_turns_its_head_the_same_way(turned):
    sine = math.sin(math.radians(20))
    left = turned(face(yaw=20))
    assert left @ FORWARD @ RIGHT == pytest.approx(-sine, abs=1e-5)  # it looks to its own left
    assert left @ UP @ UP == pytest.approx(1, abs=1e-5)
    up = turned(face(pitch=20))
    assert up @ FORWARD @ UP == pytest.approx(sine, abs=1e-5)
    assert up @ RIGHT @ RIGHT == pytest.approx(1, abs=1e-5)
    tilted = turned(face(roll=20))
    assert tilted @ UP @ RIGHT == pytest.approx(-sine, abs=1e-5)  # its head leans towards its left shoulder
    assert tilted @ FORWARD @ FORWARD == pytest.approx(1, abs=1e-5)


@given(ANGLES, ANGLES, ANGLES)
def test_any_pose_arrives_in_unity(yaw, pitch, roll):
    # Unity's axes are ours reversed, which leaves the matrix of a rotation as it is.
    sent = rotation_matrix(yaw, pitch, roll)
    np.testing.assert_allclose(by_vmc(face(yaw, pitch, roll)), sent, atol=1e-5)
    # OpenSeeFace comes to the same by other axes, once the receiver has taken off the rotation at rest.
    np.testing.assert_allclose(by_open_see(face(yaw, pitch, roll)), sent, atol=1e-5)


@given(ANGLES, ANGLES, ANGLES)
def test_live_link_angles_build_the_rotation_again(yaw, pitch, roll):
    values = live_link(face(yaw, pitch, roll)).values
    to_right, down, to_left = (math.degrees(value) for value in values[52:55])
    np.testing.assert_allclose(rotation_matrix(-to_right, -down, to_left), rotation_matrix(yaw, pitch, roll), atol=1e-5)


def test_live_link_signs_are_those_of_the_app():
    """Its recordings have positive yaw to the avatar's right, positive pitch down; radians."""
    assert live_link(face(yaw=20)).values[52] == pytest.approx(-math.radians(20))
    assert live_link(face(pitch=20)).values[53] == pytest.approx(-math.radians(20))
    assert live_link(face(roll=20)).values[54] == pytest.approx(math.radians(20))
    to_left = live_link(face(eyeLookOutLeft=0.5, eyeLookInRight=0.5)).values
    assert to_left[55:61] == pytest.approx([-math.radians(15), 0, 0] * 2)
    down = live_link(face(eyeLookDownLeft=0.5, eyeLookDownRight=0.25)).values
    assert down[55:61] == pytest.approx([0, math.radians(15), 0, 0, math.radians(7.5), 0])


def test_live_link_frames_say_who_and_when():
    frame = live_link(captured())
    assert (frame.subject, len(frame.device), frame.frame, frame.sub_frame) == ("Ava", 36, 75, 0.0)
    assert frame.rate == (25, 1)
    assert frame.values[:52] == pytest.approx([(n + 1) / 64 for n in range(52)])
    # The places that Unreal's enumeration gives to what the names are told apart by.
    assert [ARKIT_NAMES[n] for n in (0, 7, 17, 23, 43, 51)] == [
        *("eyeBlinkLeft", "eyeBlinkRight", "jawOpen", "mouthSmileLeft", "browInnerUp", "tongueOut")
    ]


def test_vmc_bundles_fit_into_packets_and_end_with_apply():
    packets: dict[Names, int] = {"vrm0": 1, "vrm1": 1, "arkit": 3}
    for names, most in packets.items():
        sent = VmcEncoder(names, ARKIT_NAMES)(captured())
        assert len(sent) <= most and max(map(len, sent)) <= 1400
        messages = [message for packet in sent for message in osc_messages(packet)]
        assert [address for address, _ in messages[:2]] == ["/VMC/Ext/OK", "/VMC/Ext/T"]
        assert messages[-1] == ("/VMC/Ext/Blend/Apply", [])
        assert [m for m, _ in messages].count("/VMC/Ext/Blend/Apply") == 1


def test_vmc_names_are_those_of_the_models():
    model = vmc(captured())
    assert model.available and model.time == pytest.approx(3.0)
    assert set(model.bones) == {"root", "Neck", "Head"}
    assert set(model.shown) == {"A", "I", "U", "E", "O", "Blink_L", "Blink_R"}
    assert set(vmc(captured(), "vrm1").shown) == {"aa", "ih", "ou", "ee", "oh", "blinkLeft", "blinkRight"}
    perfect = vmc(captured(), "arkit").shown
    assert len(perfect) == 52 and perfect["JawOpen"] == pytest.approx(18 / 64)
    assert {"EyeBlinkLeft", "MouthSmileRight", "TongueOut"} <= set(perfect)


def test_the_neck_takes_its_share_of_a_turn():
    bones = vmc(face(yaw=30)).bones
    neck, head = (Rotation.from_matrix(bones[name]).magnitude() for name in ("Neck", "Head"))
    assert math.degrees(neck) == pytest.approx(12) and math.degrees(head) == pytest.approx(18)


@pytest.mark.parametrize(
    ("moves", "viseme"),
    [
        ({"jawOpen": 1.0}, "A"),
        ({"mouthPucker": 0.8}, "U"),
        ({"mouthFunnel": 0.6, "jawOpen": 0.8}, "O"),
        ({"mouthStretchLeft": 0.6, "mouthStretchRight": 0.6, "jawOpen": 0.8}, "E"),
        ({"mouthSmileLeft": 0.6, "mouthSmileRight": 0.6, "jawOpen": 0.2}, "I"),
    ],
)
def test_the_mouths_shape_chooses_the_vowel(moves, viseme):
    shown = vmc(face(moves=moves)).shown
    vowels = {name: shown[name] for name in "AIUEO"}
    assert max(vowels, key=vowels.__getitem__) == viseme
    assert shown[viseme] > 0.4 and sum(vowels.values()) <= 1 + 1e-6


@given(st.dictionaries(st.sampled_from(["jawOpen", "mouthPucker", "mouthFunnel", "mouthStretchLeft"]), st.floats(0, 1)))
def test_vowels_are_never_more_than_one_mouth(moves):
    vowels = [vmc(face(moves=moves)).shown[name] for name in "AIUEO"]
    assert min(vowels) >= 0 and sum(vowels) <= 1 + 1e-6


def test_a_mouth_at_rest_says_nothing_and_a_closed_smile_is_no_vowel():
    assert [vmc(face()).shown[name] for name in "AIUEO"] == [0] * 5
    smile = vmc(face(moves={"mouthSmileLeft": 1.0, "mouthSmileRight": 1.0})).shown
    assert max(smile[name] for name in "AIUEO") < 0.1


def test_blinks_arrive_on_their_own_side():
    blink = face(eyeBlinkLeft=0.75)
    assert (vmc(blink).shown["Blink_L"], vmc(blink).shown["Blink_R"]) == (0.75, 0)
    seen = open_see(blink)
    assert (seen.left_eye_open, seen.right_eye_open) == (0.25, 1)
    assert seen.features[:2].tolist() == [-0.75, 0]  # left, right
    assert open_see(face(eyeWideRight=0.5)).features[:2].tolist() == [0, 0.5]


def test_openseeface_is_at_rest_as_its_tracker_is():
    rest = open_see(face())
    assert (rest.id, rest.camera, rest.got_3d, rest.error) == (0, (640, 480), True, 0)
    assert rest.time == 1_790_000_000.25
    np.testing.assert_allclose(np.abs(rest.euler), [180, 0, 90], atol=1e-4)
    assert rest.translation[2] < 0  # its solver finds the face behind the camera
    assert (rest.confidence == 1).all() and (rest.features == 0).all()


def test_openseeface_turns_its_euler_angles_as_its_tracker_does():
    # What cv2.solvePnP gives OpenSeeFace for a face that turns to its left, looks up, leans to its left.
    np.testing.assert_allclose(open_see(face(yaw=20)).euler, [180, 20, 90], atol=1e-4)
    np.testing.assert_allclose(open_see(face(pitch=20)).euler, [160, 0, 90], atol=1e-4)
    np.testing.assert_allclose(open_see(face(roll=20)).euler, [180, 0, 70], atol=1e-4)


def test_openseefaces_points_are_where_the_face_is():
    seen = open_see(face())
    x, y = seen.points.T
    right_corner, left_corner, chin = 58, 62, 8
    assert x[right_corner] < x[left_corner]  # the avatar's right is on the left of the picture
    assert y[chin] > y[right_corner] > y[27]
    assert np.hypot(*(seen.points[67] - seen.points[66])) == pytest.approx(80, rel=0.05)  # pupils: 80 pixels apart
    np.testing.assert_allclose((seen.points[66] + seen.points[67]) / 2, [340, 200], atol=6)
    upper, lower = seen.points[[59, 60, 61]], seen.points[[65, 64, 63]]
    np.testing.assert_allclose(upper[:, 0], lower[:, 0], atol=3)  # pairs of the inner lips, from right to left
    opened = open_see(face(moves={"jawOpen": 1.0})).points
    assert (opened[[65, 64, 63], 1] - opened[[59, 60, 61], 1]).min() > 20


def test_openseefaces_model_looks_at_the_viewer_and_its_eyes_follow():
    x, y, z = open_see(face()).points_3d.T  # model x to the avatar's right; y down; z away
    assert x[0] > 0.4 > -0.4 > x[16] and y[8] > 0.4 and z[0] > 0.3
    assert (x[30], y[30], z[30]) == (0, 0, 0)

    def look(motion, pupil, ball):
        points = open_see(motion).points_3d
        gaze = points[pupil] - points[ball]
        return gaze / np.linalg.norm(gaze)

    for pupil, ball in ((66, 68), (67, 69)):
        np.testing.assert_allclose(look(face(), pupil, ball), [0, 0, -1], atol=1e-6)
        assert look(face(eyeLookOutLeft=0.5, eyeLookInRight=0.5), pupil, ball)[0] == pytest.approx(
            -math.sin(math.pi / 12)
        )
        assert look(face(eyeLookUpLeft=0.5, eyeLookUpRight=0.5), pupil, ball)[1] == pytest.approx(
            -math.sin(math.pi / 12)
        )


@pytest.mark.parametrize(
    ("moves", "feature", "sign"),
    [
        ({"browInnerUp": 1.0}, 2, 1),  # left brow: steeper, its inner end the higher one
        ({"browOuterUpLeft": 1.0}, 2, -1),
        ({"browOuterUpLeft": 1.0}, 3, 1),  # higher
        ({"browDownLeft": 1.0}, 3, -1),
        ({"browDownRight": 1.0}, 6, -1),
        ({"mouthSmileLeft": 1.0}, 8, -1),  # corners: positive is down
        ({"mouthFrownRight": 1.0}, 10, 1),
        ({"mouthPucker": 1.0}, 9, -1),  # towards the middle
        ({"mouthStretchRight": 1.0}, 11, 1),
        ({"jawOpen": 1.0}, 12, 1),
        ({"mouthPucker": 1.0}, 13, -1),  # width
        ({"mouthStretchLeft": 1.0, "mouthStretchRight": 1.0}, 13, 1),
    ],
)
def test_openseefaces_features_have_its_signs_and_about_its_size(moves, feature, sign):
    assert 0.4 <= sign * open_see(face(moves=moves)).features[feature] <= 1


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("vmc_vrm0", lambda: VmcEncoder("vrm0", ARKIT_NAMES)),
        ("vmc_arkit", lambda: VmcEncoder("arkit", ARKIT_NAMES)),
        ("live_link_face", lambda: LiveLinkFaceEncoder("Ava")),
        ("open_see_face", OpenSeeFaceEncoder),
    ],
)
def test_packets_are_those_of_the_fixtures(name, encode):
    stored = [path.read_bytes() for path in sorted(FIXTURES.glob(f"{name}_*.bin"))]
    sent = encode()(captured())
    assert [len(packet) for packet in sent] == [len(packet) for packet in stored]
    # Texts and places to the byte; floats may round differently on another processor.
    for ours, theirs in zip(sent, stored, strict=True):
        assert sum(a != b for a, b in zip(ours, theirs, strict=True)) <= len(ours) // 8
    match name:
        case "open_see_face":
            np.testing.assert_allclose(OpenSeeFace.of(sent[0]).points, OpenSeeFace.of(stored[0]).points, atol=1e-3)
        case "live_link_face":
            assert LiveLinkFrame.of(sent[0]).values == pytest.approx(LiveLinkFrame.of(stored[0]).values, abs=1e-6)
        case _:
            assert VmcModel.of(sent).shown == pytest.approx(VmcModel.of(stored).shown, abs=1e-6)


def test_a_bundle_of_one_frame_does_not_change_with_the_next():
    encoder = VmcEncoder("vrm0", ARKIT_NAMES)
    first = encoder(face(eyeBlinkLeft=1.0))
    encoder(face())
    assert VmcModel.of(first).shown["Blink_L"] == 1


@given(ANGLES, ANGLES, ANGLES, st.floats(0, 1))
def test_a_share_of_a_turn_and_the_rest_of_it_are_the_turn(yaw, pitch, roll, share):
    turn = face(yaw, pitch, roll).head.quaternion
    for whole in (turn, tuple(-value for value in turn)):
        both = rotation_of(part_of(whole, share)) @ rotation_of(part_of(whole, 1 - share))
        np.testing.assert_allclose(both, rotation_of(turn), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("127.0.0.1", ("127.0.0.1", 39539)),
        ("studio.local:40000", ("studio.local", 40000)),
        ("[::1]", ("::1", 39539)),
        ("[fe80::1%eth0]:5", ("fe80::1%eth0", 5)),
    ],
)
def test_receivers_are_hosts_with_or_without_a_port(text, target):
    assert udp_target(text, 39539) == target


@pytest.mark.parametrize("text", ["", "host:", "host:0", "host:70000", "::1", "a b", "udp://host:1", "a..b", "x" * 64])
def test_other_receivers_are_refused_in_one_line(text):
    with pytest.raises(TargetError, match=r"expected HOST or HOST:PORT, such as 127\.0\.0\.1:39539$"):
        udp_target(text, 39539)
