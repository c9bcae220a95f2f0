import numpy as np
import pytest
import torch

from avatard.models.speech import WhisperConfig, WhisperFeatures
from avatard.models.training.atom.audio_augmentation import Track
from avatard.models.training.atom.bundle import Bundle, BundledClip, read, write
from avatard.models.training.atom.dataset import MotionClip, at_audio
from avatard.models.training.atom.device_data import PLAIN, Augmentation, DeviceData, Places, stretched
from avatard.models.training.clips import Entry
from avatard.models.training.packing import BundleError

CPU = torch.device("cpu")


def bundle(offsets=(1.0, -2.0), frames=(40, 30)):
    rng = np.random.default_rng(0)
    clips = [
        BundledClip("lrw", f"c{n}", f"p{n % 2}", "train", count, offset)
        for n, (count, offset) in enumerate(zip(frames, offsets, strict=True))
    ]
    landmarks = np.cumsum(rng.normal(0, 0.01, (sum(frames), 68, 3)), axis=0).astype(np.float32)
    audio = rng.normal(0, 3000, sum(frames) * 640).astype(np.int16)
    return Bundle(clips, landmarks, audio)


def data(whole):
    torch.manual_seed(0)
    speech = WhisperFeatures(WhisperConfig(width=24, heads=2, layers=1)).eval()
    return DeviceData(whole, "train", CPU, speech, window_frames=16, tracks=2)


def places(clip, last, tempo=1.0, silent=False):
    return Places(
        torch.tensor([clip]), torch.tensor([float(last)]), torch.tensor([tempo]), torch.tensor([-1]),
        torch.tensor([silent]),
    )  # fmt: skip


@pytest.mark.parametrize(("clip", "offset", "last"), [(0, 1, 20), (1, -2, 14), (0, 1, 5)])
def test_a_window_is_the_sound_that_ends_lookahead_after_the_last_frame(clip, offset, last):
    whole = bundle()
    made, lookahead = data(whole), 2
    first, count = (0, 40) if clip == 0 else (40 * 640, 30)
    track = Track(whole.audio[first : first + count * 640].astype(np.float32) / 32768, 0)
    expected = track.window(last + 1 + offset + lookahead, 16)
    np.testing.assert_allclose(made.sound(places(clip, last), lookahead)[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("silent", [False, True])
def test_motion_is_that_of_the_data_set_on_the_cpu(silent):
    whole = bundle()
    made = data(whole)
    face = made.faces[0]
    entry = Entry("lrw", "c0", "p0", 40, "")
    clip = MotionClip(
        entry, face.landmarks, face.neutrals, face.closed, face.closed_neutral, 1, torch.zeros(0), np.zeros(0, np.int16)
    )
    for last in (4, 20, 44):
        expected, known = at_audio(clip, last + 2, 12, silent)
        got, got_known = made.motion(places(0, last, silent=silent), 12)
        np.testing.assert_array_equal(got_known[0].numpy(), known)
        weight = known[:, None, None]
        np.testing.assert_allclose(got[0].numpy() * weight, expected * weight, atol=1e-5)


def test_a_fraction_of_a_frame_moves_the_sound_and_not_the_picture():
    exact, later = data(bundle()), data(bundle(offsets=(1.25, -2.0)))
    at = places(0, 20)
    assert torch.equal(exact.motion(at, 12)[0], later.motion(at, 12)[0])
    assert torch.equal(exact.sound(at, 2)[:, 160:], later.sound(at, 2)[:, :-160])


def test_a_faster_clip_is_read_faster():
    made = data(bundle())
    fast = made.sound(places(0, 30, tempo=1.25), 2)[0]
    end = round((30 + 1 + 0.5 + 2.5 * 1.25) * 640)
    assert fast[-4] == pytest.approx(made.audio[end - 5].item() / 32768, abs=1e-4)
    motion, _ = made.motion(places(0, 30, tempo=1.25), 5)
    torch.testing.assert_close(motion[0, 0], made.landmarks[25])


def test_batches_depend_on_their_generator_alone():
    made = data(bundle())
    first, again = (made.batch(8, 12, 2, Augmentation(), torch.Generator().manual_seed(3)) for _ in range(2))
    for a, b in zip(vars(first).values(), vars(again).values(), strict=True):
        assert torch.equal(a, b) and a.isfinite().all()
    assert first.audio.shape == (8, 16, 48) and first.target.shape == (8, 12, 68, 3)
    plain = made.batch(8, 12, 2, PLAIN, torch.Generator().manual_seed(3))
    assert set(plain.weight.unique().tolist()) <= {0.0, 1.0}


def test_spectra_are_stretched():
    spectrum = torch.zeros(2, 201, 1)
    spectrum[:, 50] = 1
    assert stretched(spectrum, torch.tensor([1.0, 1.2])).argmax(1).ravel().tolist() == [50, 60]


def test_a_bundle_comes_back_as_it_was(tmp_path):
    whole = bundle()
    parts = [
        (clip, whole.landmarks[a:b], whole.audio[640 * a : 640 * b])
        for clip, (a, b) in zip(whole.clips, ((0, 40), (40, 70)), strict=True)
    ]
    files = write(tmp_path, parts, 20_000)
    assert len(files) > 1 and max(file.stat().st_size for file in files) <= 20_000
    back = read(tmp_path)
    assert back.clips == whole.clips
    assert np.abs(back.landmarks - whole.landmarks).max() < 1e-3
    error = (back.audio.astype(float) - whole.audio).std() / whole.audio.std()
    assert error < 0.12
    files[0].write_bytes(files[0].read_bytes()[:-1])
    with pytest.raises(BundleError, match="cut off or altered"):
        read(tmp_path)
