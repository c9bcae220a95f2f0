import numpy as np
import pytest

from avatard.models.face.crop import CROP_ORIGIN, CROP_SCALE
from avatard.models.face.pose import Pose, rotation_matrix
from avatard.models.training.bundle import (
    POSE_STEPS,
    REGISTERED_STEP,
    ClipToPack,
    PackedMotion,
    decode_video,
    encode_video,
    is_bundle,
    read_bundle,
    write_bundle,
)
from avatard.models.training.clips import Entry, write_index
from avatard.models.training.packing import LANDMARK_STEPS, BundleError


def motion_of(frames, seed=0):
    """Landmarks, registered points and poses of a head that nods and talks."""
    rng = np.random.default_rng(seed)
    landmarks = np.cumsum(rng.normal(0, 0.01, (frames, 68, 3)), 0)
    registered = 128 + np.cumsum(rng.normal(0, 2, (frames, 68, 2)), 0)
    turns = np.stack([rotation_matrix(2 * n, -n, 0.5 * n) for n in range(frames)])
    pose = Pose(
        turns, CROP_SCALE * (1 + 0.01 * np.arange(frames)), np.array(CROP_ORIGIN) + rng.normal(0, 3, (frames, 2))
    )
    return landmarks, registered, pose


def pictures_of(frames, side=256):
    """A soft pattern that drifts, `[N, side, side, 3]`."""
    y, x = np.mgrid[:side, :side] * (256 / side)
    waves = [np.sin((x + 3 * n) / 17 + c) + np.cos(y / (13 + c)) for n in range(frames) for c in range(3)]
    return (127 + 50 * np.stack(waves)).reshape(frames, 3, side, side).transpose(0, 2, 3, 1).astype(np.uint8)


def clip_to_pack(name, frames=5, side=256, seed=0):
    entry = Entry("news", name, f"p{seed}", frames, f"news/{name}.safetensors", animated=seed == 1)
    return ClipToPack(entry, PackedMotion.of(*motion_of(frames, seed)), encode_video(pictures_of(frames, side)), side)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


def test_pictures_come_back_in_order_and_nearly_as_they_were():
    pictures = pictures_of(40)
    back = decode_video(encode_video(pictures))
    assert back is not None and back.shape == pictures.shape
    for n in range(40):
        assert psnr(back[n], pictures[n]) > 38
        assert n == 0 or psnr(back[n], pictures[n]) > psnr(back[n], pictures[n - 1])
    assert len(encode_video(pictures, 40)) < len(encode_video(pictures))
    assert decode_video(b"no video") is None


def test_motion_comes_back_within_half_a_step():
    landmarks, registered, pose = motion_of(30)
    packed = PackedMotion.of(landmarks, registered, pose)
    assert (np.abs(packed.landmarks - landmarks) <= LANDMARK_STEPS * 0.501).all()
    assert np.abs(packed.registered - registered).max() <= REGISTERED_STEP * 0.501
    assert np.abs(packed.pose.rotation - pose.rotation).max() < 2 * POSE_STEPS[0]
    assert np.abs(np.log(packed.pose.scale / pose.scale)).max() < POSE_STEPS[3]
    assert np.abs(packed.pose.translation - pose.translation).max() < POSE_STEPS[5]


def test_a_bundle_is_divided_into_small_files_and_comes_back(tmp_path):
    clips = [clip_to_pack(str(n), frames=4 + n, side=512 if n == 3 else 256, seed=n) for n in range(5)]
    limit = 40_000
    files = write_bundle(tmp_path / "b", clips, limit)
    assert len(files) > 2 and files[-1].name == "index.json" and is_bundle(tmp_path / "b")
    assert all(path.stat().st_size <= limit for path in files[:-1])
    found = read_bundle(tmp_path / "b")
    assert [entry for entry, _ in found] == [clip.entry for clip in clips]
    for n, (_, clip) in enumerate(found):
        np.testing.assert_array_equal(clip.landmarks, clips[n].motion.landmarks)
        np.testing.assert_array_equal(clip.registered, clips[n].motion.registered)
        assert psnr(clip.frames([1, 3]), pictures_of(4 + n)[[1, 3]]) > 33
        assert clip.pictures().shape[1:] == ((512, 512, 3) if n == 3 else (256, 256, 3))


def test_what_is_cut_off_altered_or_missing_is_named(tmp_path):
    folder = tmp_path / "b"
    part, index = write_bundle(folder, [clip_to_pack("a")], 1 << 20)
    data, listed = part.read_bytes(), index.read_text()

    def refused(match):
        with pytest.raises(BundleError, match=match) as caught:
            read_bundle(folder)
        assert "\n" not in str(caught.value)

    part.write_bytes(data[:-10])
    refused(r"part_000.bin has [\d,]+ bytes of [\d,]+: copy it again")
    part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused("part_000.bin is altered")
    part.unlink()
    refused("part_000.bin is missing")
    part.write_bytes(data)
    for broken in (listed[: len(listed) // 2], listed.replace('"p0"', '"p1"'), "{}", "[]" + 300 * " "):
        index.write_text(broken)
        refused("index.json is cut off or altered" if broken.startswith("{") else "has no bundle")
    index.write_text(listed)
    assert len(read_bundle(folder)) == 1
    with pytest.raises(BundleError, match="has a bundle: give another folder"):
        write_bundle(folder, [clip_to_pack("a")], 1 << 20)


def test_a_video_that_cannot_be_decoded_is_named(tmp_path):
    clip = clip_to_pack("a")
    write_bundle(tmp_path / "b", [ClipToPack(clip.entry, clip.motion, b"no video at all")], 1 << 20)
    ((_, packed),) = read_bundle(tmp_path / "b")
    with pytest.raises(BundleError, match="news/a cannot be decoded"):
        packed.frames()


def test_another_format_and_clips_larger_than_a_part_are_refused(tmp_path):
    with pytest.raises(BundleError, match=r"news/a takes [\d,]+ bytes, a part has 2,000: cut the clip"):
        write_bundle(tmp_path / "a", [clip_to_pack("a")], 2000)
    _, index = write_bundle(tmp_path / "b", [clip_to_pack("a")], 1 << 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("avatard.models.training.bundle.FORMAT", "avatard clips 2")
        with pytest.raises(BundleError, match="of the format 'avatard clips 1', expected 'avatard clips 2'"):
            read_bundle(tmp_path / "b")


def test_the_index_of_prepared_data_is_no_bundle(tmp_path):
    write_index(tmp_path, [Entry("news", "a", "p", 3, "a")])
    assert not is_bundle(tmp_path)
    with pytest.raises(BundleError, match="has no bundle: scripts/pack_data.py writes one"):
        read_bundle(tmp_path)
