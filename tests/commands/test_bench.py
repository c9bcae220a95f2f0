import json
import time

import cv2
import numpy as np
import pytest

from avatard.commands.bench import bench, stages, table, voice
from avatard.config import Config, Inference, Stream
from tests.support.warp_engine import WarpEngine

CONFIG = Config(stream=Stream(clip_frames=8, hop_frames=5, fade_frames=2), inference=Inference(device="cpu"))


class Quick(WarpEngine):
    seconds_per_frame = 0.0


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    portrait = tmp_path_factory.mktemp("bench") / "me.png"
    cv2.imwrite(str(portrait), np.full((256, 256, 3), 180, np.uint8))
    return bench(CONFIG, Quick, portrait, seconds=2)


def test_the_report_is_json_and_counts_every_frame(report):
    assert json.loads(json.dumps(report)) == report
    assert report["render"]["frames"] == 50
    assert report["render"]["rtf"] == pytest.approx(report["render"]["wall_seconds"] / 2)
    assert report["stream"]["hop_frames"] == 5
    assert report["paper_rtf"] == 25
    assert 10 < report["peak_memory_mb"] < 20_000


def test_the_table_names_every_stage_and_figure(report):
    text = table(report)
    for word in (
        "motion",
        "generate",
        "render",
        "core-ms a hop",
        "real-time factor",
        "peak memory",
        "2 s of video",
        "the paper's: 25",
        "5 s of video at that rate",
        "the paper's: 125 s",
    ):
        assert word in text


def test_sessions_are_what_the_cost_leaves_room_for(report):
    many = report["sessions"]
    cost = sum(sum(parts.values()) for parts in report["core_ms_per_frame"].values())
    assert many["at_25_fps"] == many["by_cores"] == int(many["cores"] * 40 / cost)
    assert many["device"] is None and many["memory_mb_each"] >= 0
    assert report["machine"]["device"] == "cpu" and report["hop_ms"] > 0
    text = table(report)
    assert f"{many['at_25_fps']}, by their cost on {many['cores']} cores" in text
    assert "a hop of 5 frames" in text and "memory of a session" in text and "on cpu" in text


def test_a_gpu_shares_the_table_with_the_cores_that_compose(report):
    measured = [{"sessions": 1, "hop_ms": 5.0}, {"sessions": 2, "hop_ms": 250.0}]
    device = {"networks": 1, "memory_mb_each": 12.0, "measured": measured}
    machine = {**report["machine"], "device": "cuda:0", "device_name": "A Card"}
    many = {**report["sessions"], "by_cores": 7, "at_25_fps": 1, "device": device}
    text = table({**report, "machine": machine, "sessions": many})
    assert "on cuda:0 (A Card)" in text and "12 MB of the GPU" in text
    assert "1: networks 1; tried up to 2, 250 ms a hop; compositors 7 on" in text


def test_an_unknown_memory_and_load_are_said_to_be_unknown(report):
    other = {**report, "peak_memory_mb": None, "machine": {**report["machine"], "load_before": None}}
    assert table(other).count("unknown") == 2


def test_stages_count_steady_frames_only_and_add_up():
    class Timed(Quick):
        def begin(self, first_frame, warm_up=False):
            stream, timer = super().begin(first_frame, warm_up), self.timer
            render = stream.render

            def timed(motion):
                with timer("decoder"):
                    until = time.thread_time() + 0.01
                    while time.thread_time() < until:
                        pass
                yield from render(motion)

            stream.render = timed  # type: ignore[method-assign]
            return stream

    costs = stages(Timed(CONFIG), 2)
    assert set(costs) == {"motion", "generate", "render"} and set(costs["render"]) == {"decoder", "the rest"}
    assert 1.5 < costs["render"]["decoder"] < 4, "10 ms for a hop of 5 frames"
    assert costs["render"]["the rest"] > 0 and costs["motion"]["the rest"] > 0


def test_the_voice_is_reproducible_and_in_range():
    said = voice(1.5)
    assert len(said) == 24_000 and said.dtype == np.float32
    assert 0.1 < np.abs(said).max() <= 1
    np.testing.assert_array_equal(said, voice(1.5))
