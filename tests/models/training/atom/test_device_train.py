import csv
import json
from dataclasses import replace

import numpy as np

from avatard.models import checkpoint
from avatard.models.atom.model import Atom, AtomConfig
from avatard.models.evaluation.motion_streams import Streams
from avatard.models.training.atom.bundle import Bundle, BundledClip
from avatard.models.training.atom.device_train import SETTINGS, Variant, train, variants
from avatard.models.training.schedule import Clock

SMALL = AtomConfig(width=24, depth=1, rest_depth=1, heads=2)


def test_a_training_of_two_steps_leaves_weights_that_load(tmp_path):
    rng = np.random.default_rng(0)
    clips = [BundledClip("lrw_ar", f"{n}", f"p{n}", "validation" if n == 2 else "train", 20, 0.5 * n) for n in range(3)]
    landmarks = np.cumsum(rng.normal(0, 0.01, (60, 68, 3)), axis=0).astype(np.float32)
    bundle = Bundle(clips, landmarks, rng.normal(0, 3000, 60 * 640).astype(np.int16))
    for steps in (1, 2):  # the second call resumes
        settings = replace(SETTINGS, batch=4, steps=steps, log=1, precision="no")
        clock = Clock(lambda: 0.0)
        train(bundle, Variant(SMALL), settings, tmp_path / "run", "cpu", lambda data: Streams(data).figures, clock)
    losses = [float(row["total"]) for row in csv.DictReader((tmp_path / "run" / "log.csv").read_text().splitlines())]
    assert len(losses) == 2 and all(np.isfinite(losses))
    for name in ("best", "last"):
        path = tmp_path / "run" / f"{name}.safetensors"
        atom = Atom.load(path)
        assert atom.config == SMALL and all(tensor.isfinite().all() for tensor in atom.state_dict().values())
        assert json.loads(checkpoint.load(path)[1]["metrics"])["score"] < 1


def test_every_variant_can_serve_live():
    for variant in variants(0).values():
        assert variant.network.frames == AtomConfig().frames and variant.network.width % variant.network.heads == 0
