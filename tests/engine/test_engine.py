"""The engine with tiny networks of random weights: what the scheduler counts on, whatever the networks draw."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
import torch

from avatard.commands.render import play_out
from avatard.config import Config, Motion, Picture, Stream, Video
from avatard.engine.engine import ahead, make_engine
from avatard.engine.identity import Identity
from avatard.engine.networks import Passes, shared_passes
from avatard.engine.prepared import PreparedPortraits
from avatard.engine.video_stream import PreparedPortrait
from avatard.errors import UserError
from avatard.frame import Sound
from avatard.inference import ipc
from avatard.inference.engine_api import EngineError
from avatard.models import checkpoint
from avatard.models.atom.model import AtomConfig
from avatard.models.device import DeviceError
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import mouth_opening
from avatard.playout.audio_timeline import Timing
from avatard.playout.scheduler import AudioChunk, PlayoutFrame, Scheduler
from avatard.playout.utterance import Utterance
from avatard.portrait import Portrait
from avatard.timebase import SAMPLES_PER_FRAME
from tests.support.faces import PORTRAIT
from tests.support.tiny_atom import awake
from tests.support.tiny_mcvdm import tiny

STREAM = Stream(clip_frames=8, hop_frames=3, fade_frames=2, lookahead_ms=80, motion_steps=1, video_steps=1, seed=4)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    folder: Path = tmp_path_factory.mktemp("weights")
    atom = awake(AtomConfig(width=24, depth=1, rest_depth=1, heads=2), 0.3)
    atom.to_rest[1, [3 * point + 1 for point in (65, 66, 67)]] = -1  # at rest the lower lip is up by the opening
    checkpoint.save(folder / "atom.safetensors", dict(atom.state_dict()), {"config": atom.config.to_json()})
    tiny().save(folder / "mcvdm.safetensors", {})
    motion, video = Motion(weights=str(folder / "atom.safetensors")), Video(weights=str(folder / "mcvdm.safetensors"))
    return Config(stream=STREAM, motion=motion, video=video)


@pytest.fixture(scope="module")
def engine(config):
    engine = make_engine(config)
    engine.identify(Portrait.read(PORTRAIT))
    engine.begin(0)  # the first take begins with the portrait's own expression; these tests are of any take
    return engine


def speech(frames: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return (0.1 * rng.normal(size=frames * SAMPLES_PER_FRAME)).astype(np.float32)


def clips_of(stream, sound):
    return [clip for motion in stream.motion(sound) for clip in stream.generate(motion)]


def run(engine, sound, cuts=(), first=0):
    stream = engine.begin(first)
    edges = [0, *cuts, len(sound)]
    made = []
    for start, end in zip(edges, edges[1:], strict=False):
        for clip in clips_of(stream, sound[start:end]):
            for at, pictures in stream.render(clip):
                made += [(at + k, picture) for k, picture in enumerate(pictures)]
    return made


def test_any_chunking_gives_the_same_pictures(engine):
    sound = speech(14)
    whole, cut = run(engine, sound), run(engine, sound, (1, 700, 701, 5000))
    assert [index for index, _ in whole] == [index for index, _ in cut] == list(range(len(whole)))
    for (_, one), (_, other) in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.landmarks, other.landmarks)
        assert one.head == other.head


def test_clips_are_rendered_later_as_if_at_once(engine):
    sound = speech(20)
    stream = engine.begin(0)
    made = [pictures for clip in clips_of(stream, sound) for _, pictures in stream.render(clip)]
    at_once = run(engine, sound)
    assert sum(map(len, made)) == len(at_once)
    for one, (_, other) in zip((picture for pictures in made for picture in pictures), at_once, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_only_the_first_take_of_a_face_begins_with_the_portrait(engine):
    engine.identify(Portrait.read(PORTRAIT))
    first, second = (run(engine, speech(14))[0][1].landmarks for _ in range(2))
    assert mouth_opening(first) > mouth_opening(second) + 0.02  # she smiles; an interrupt is to close the mouth
    engine.identify(Portrait.read(PORTRAIT))
    np.testing.assert_array_equal(run(engine, speech(14))[0][1].landmarks, first)


def test_rooms_share_the_networks_and_nothing_else(config, engine):
    """Their clips are made by turns; each has the frames that it would have alone."""
    transparent = msgspec.structs.replace(config, picture=Picture(background="transparent", size=256))
    other = engine.another(transparent)
    assert other.networks is engine.networks
    other.identify(Portrait.read(PORTRAIT))
    other.begin(0)
    rooms = [(engine, speech(20)), (other, 0.3 * speech(20))]
    alone = [[frame.pixels for _, frame in run(room, sound)] for room, sound in rooms]
    streams = [room.begin(0) for room, _ in rooms]
    made: list[list[np.ndarray]] = [[], []]
    clips = [clips_of(stream, sound) for stream, (_, sound) in zip(streams, rooms, strict=True)]
    for pair in zip(*clips, strict=True):
        rendered = [stream.render(clip) for stream, clip in zip(streams, pair, strict=True)]
        while rendered:
            for room, pictures in enumerate(list(rendered)):
                some = next(pictures, None)
                if some is None:
                    rendered = []
                else:
                    made[room] += [frame.pixels for frame in some[1]]
    for seen, expected in zip(made, alone, strict=True):
        assert len(seen) == len(expected) > 10
        np.testing.assert_array_equal(np.stack(seen), np.stack(expected))
    loaded = engine.another(msgspec.structs.replace(config, motion=Motion(weights=config.motion.weights, gain=2.0)))
    assert loaded.networks is engine.networks
    assert make_engine(config).networks is not engine.networks


def test_a_portrait_that_was_seen_lately_is_not_looked_at_again(config, engine, monkeypatch):
    looked: list[Portrait] = []
    find = Identity.find

    def counting(portrait: Portrait) -> Identity:
        looked.append(portrait)
        return find(portrait)

    monkeypatch.setattr(Identity, "find", counting)
    known = PreparedPortraits(engine.networks.mcvdm)
    mean = MorphableModel.load().mean_68
    data = Portrait.read(PORTRAIT).data
    first = known.find(Portrait(data), mean)
    assert known.find(Portrait(data, name="again"), mean) is first and len(looked) == 1
    monkeypatch.setattr("avatard.engine.prepared.KEPT", 1)
    known.find(Portrait(data, face=1), mean)
    assert len(looked) == 2
    known.find(Portrait(data), mean)
    assert len(looked) == 3, "it made room"


def spoken(config, **motion):
    """The lips of a fresh take `[k, 20, 3]` with keys of `[motion]` replaced."""
    changed = msgspec.structs.replace(config.motion, **motion)
    engine = make_engine(msgspec.structs.replace(config, motion=changed))
    engine.identify(Portrait.read(PORTRAIT))
    engine.begin(0)
    return np.stack([picture.landmarks[48:] for _, picture in run(engine, speech(14))])


def test_takes_differ_by_the_noise(config):
    calm, usual, lively = (spoken(config, noise=noise) for noise in (0.0, 0.5, 1.0))
    assert not np.array_equal(calm, usual)
    assert np.abs(lively - calm).mean() > np.abs(usual - calm).mean()


def test_the_gain_is_the_size_of_what_speech_moves(config):
    def lips(gain):
        return spoken(config, gain=gain, noise=0.0)

    still, usual, wide = (lips(gain) for gain in (0.0, 1.0, 2.0))
    assert np.abs(usual - still).max() > 0.01
    np.testing.assert_allclose(wide - still, 2 * (usual - still), atol=1e-5)


def test_pictures_come_when_the_scheduler_counts_on_them(engine):
    """Frames up to hop end - cross-fade, as soon as the hop and the look-ahead were heard, and not a sample before."""
    needed = 2 * 3 * SAMPLES_PER_FRAME + 2 * SAMPLES_PER_FRAME
    assert len(run(engine, speech(20)[: needed - 1])) == 1
    assert len(run(engine, speech(20)[:needed])) == 4


def live(engine, said, packet, frames):
    """What a session plays out if speech comes in packets of so many samples, in simulated time."""
    timing = Timing(STREAM.hop_frames, STREAM.fade_frames, 2 * SAMPLES_PER_FRAME, compute_frames=1)
    scheduler, stream = Scheduler(timing), engine.begin(0)
    played: list[PlayoutFrame] = []
    pushed, now = 0, -timing.delay_frames - timing.tick_frames
    while len(played) < frames:
        if pushed < len(said) and (now - 2) * SAMPLES_PER_FRAME >= pushed + packet:
            pushed += scheduler.push(Sound.of_speech(said[pushed : pushed + packet]), now, Utterance("1"))
        for command in scheduler.poll(now):
            for clip in clips_of(stream, command.samples) if isinstance(command, AudioChunk) else ():
                for first, pictures in stream.render(clip):
                    scheduler.add(0, first, pictures)
        while len(played) <= now:
            played.append(scheduler.play(now))
        now += timing.tick_frames
    return played


@pytest.mark.parametrize("packet", [320, 1111])
def test_streamed_is_what_is_rendered_from_the_same_sound(engine, config, packet):
    said = speech(12)
    streamed = live(engine, said, packet, 30)
    sound = np.concatenate([entry.samples for entry in streamed])
    assert np.count_nonzero(sound) == len(said)
    rendered = list(play_out(engine, [sound], config))
    assert len(rendered) == len(streamed)
    for one, other in zip(streamed, rendered, strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)
        assert one.picture is not None and other.picture is not None
        np.testing.assert_array_equal(one.picture.landmarks, other.picture.landmarks)
        np.testing.assert_array_equal(one.picture.pixels, other.picture.pixels)


def test_a_take_begins_anywhere(engine):
    made = run(engine, speech(12), first=1000)
    assert made[0][0] == 1000
    pixels = made[0][1].pixels
    assert pixels.shape == (484, 484, 3) and pixels.dtype == np.uint8, "twice the photograph's own pixels"
    face = made[0][1]
    assert face.landmarks.shape == (68, 3) and face.blendshapes.shape == (52,)
    assert np.linalg.norm(face.head.quaternion) == pytest.approx(1)
    assert 20 < face.head.scale < 200, "pixels per interocular distance"


def test_steps_change_while_it_runs(engine):
    stream = engine.begin(0)
    list(stream.motion(speech(6)))
    engine.set_quality(2, 2, 1)
    assert list(stream.motion(speech(6)))
    engine.set_quality(1, 1, 1)


def test_a_stream_begins_with_the_portrait_whatever_was_rehearsed(config):
    engine = make_engine(config)
    engine.identify(Portrait.read(PORTRAIT))
    first = [next(iter(engine.begin(0, warm_up).motion(speech(30)))) for warm_up in (True, False, False)]
    np.testing.assert_array_equal(first[0].landmarks, first[1].landmarks)
    assert not np.array_equal(first[1].landmarks, first[2].landmarks)


def test_at_half_the_frame_rate_faces_are_still_those_of_every_frame(config):
    import msgspec

    stream = msgspec.structs.replace(STREAM, hop_frames=4)
    engine = make_engine(msgspec.structs.replace(config, stream=stream))
    engine.identify(Portrait.read(PORTRAIT))
    engine.begin(0)
    sound = speech(18)
    full = run(engine, sound, first=7)
    engine.set_quality(1, 1, 2)
    half = run(engine, sound, (1500,), first=7)
    assert [index for index, _ in half] == [index for index, _ in full]
    for (_, one), (_, other) in zip(full, half, strict=True):
        np.testing.assert_array_equal(one.landmarks, other.landmarks)
        assert one.head == other.head
    pixels = [picture.pixels for _, picture in half]
    assert all((a == b).all() for a, b in zip(pixels[::2], pixels[1::2], strict=True))
    assert not any((a == b).all() for a, b in zip(pixels[1::2], pixels[2::2], strict=False))


def test_at_half_the_size_pictures_are_as_large_and_show_the_same(engine):
    engine.set_quality(1, 1, 1)
    engine.begin(0)
    full = [picture for _, picture in run(engine, speech(12), first=7)]
    engine.set_quality(1, 1, 1, 2)
    half = [picture for _, picture in run(engine, speech(12), first=7)]
    engine.set_quality(1, 1, 1)
    for one, other in zip(full, half, strict=True):
        assert one.pixels.shape == other.pixels.shape == (484, 484, 3)
        assert one.head == other.head
        soft, softer = (cv2.GaussianBlur(frame.pixels, (0, 0), 4).astype(int) for frame in (one, other))
        assert np.abs(soft - softer).mean() < 4
        assert cv2.Laplacian(other.pixels, cv2.CV_64F).std() < cv2.Laplacian(one.pixels, cv2.CV_64F).std()
        assert other.backdrop is not None
        np.testing.assert_array_equal(other.backdrop.with_moved(ipc.pack_pixels([other])[0]), other.pixels)
    assert half[0].backdrop is half[-1].backdrop, "sent once"


def test_what_is_no_face_is_one_line(engine, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="x.png"):
        engine.identify(Portrait.read(path))


def test_missing_weights_are_one_line(config):
    import msgspec

    broken = msgspec.structs.replace(config, video=Video(weights="none.safetensors"))
    with pytest.raises(UserError, match=r"none\.safetensors"):
        make_engine(broken)


def test_a_configuration_that_does_not_fit_the_networks_is_one_line(config):
    import msgspec

    stream = msgspec.structs.replace(STREAM, clip_frames=10)
    engine = make_engine(msgspec.structs.replace(config, stream=stream))
    engine.identify(Portrait.read(PORTRAIT))
    with pytest.raises(EngineError, match="got a clip of 10 frames, expected a multiple of 4"):
        engine.begin(0)


def test_sessions_that_share_passes_show_what_each_shows_alone(config):
    """As on a GPU; there, too, each session has a thread."""
    engine = make_engine(config)
    own = engine.networks
    passes = shared_passes(own.atom, own.speech, own.mcvdm, own.painter)
    streams, sounds = [], [speech(12) * (n + 1) for n in range(3)]
    for shared in (Passes(), passes, passes, passes):
        engine.networks = replace(own, passes=shared, decoding=ThreadPoolExecutor(3))
        engine.identify(Portrait.read(PORTRAIT))
        streams.append(engine.begin(0))

    def shown(stream, sound):
        return np.stack([f.pixels for clip in clips_of(stream, sound) for _, made in stream.render(clip) for f in made])

    with ThreadPoolExecutor(3) as threads:
        alone, *together = threads.map(shown, streams, [sounds[0], *sounds])
    assert len(alone) == len(together[0]) > 6
    difference = np.abs(alone.astype(int) - together[0])
    assert difference.max() <= 3 and difference.mean() < 0.05
    assert np.abs(together[0].astype(int) - together[2]).mean() > 0.05, "they do not say the same"


def test_a_memory_without_room_refuses_a_portrait_and_keeps_the_one_before(engine, monkeypatch):
    before = engine._person

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PreparedPortrait, "of", full)
    with pytest.raises(DeviceError, match="this portrait: the GPU's memory is full"):
        engine.identify(Portrait.read(PORTRAIT, face=1))  # the one without a number is prepared
    assert engine._person is before


def test_the_next_item_is_made_while_one_is_used():
    made: list[int] = []

    def items():
        for n in range(3):
            made.append(n)
            yield n

    with ThreadPoolExecutor(1) as executor:
        coming = ahead(items(), executor)
        assert next(coming) == 0
        executor.submit(int).result()  # what was asked for before is done
        assert made == [0, 1]
        assert list(coming) == [1, 2]

        def broken():
            yield 0
            raise ValueError("broken")

        coming = ahead(broken(), executor)
        assert next(coming) == 0
        with pytest.raises(ValueError, match="broken"):
            next(coming)
