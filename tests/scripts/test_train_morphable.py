import subprocess
import sys

import numpy as np
from PIL import Image

from avatard.models.checkpoint import load
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import interocular
from tests.support.faces import morphable, on_canvas, portrait, write_video
from tests.support.paths import SCRIPTS

SCRIPT = SCRIPTS / "train_morphable.py"


def test_a_model_is_learned_from_portraits_and_videos(tmp_path):
    (tmp_path / "anna").mkdir()
    for number, width in enumerate((270, 300, 330)):
        Image.fromarray(portrait()).resize((width, 300)).save(tmp_path / f"{number}.png")
    # A mouth region that is stretched a little more in each frame moves like one that opens.
    frames = []
    for stretch in range(4):
        frame = on_canvas(340, 320, (0, 0, 1.0))
        lower = Image.fromarray(frame[145:300]).resize((320, 155 + 4 * stretch))
        frame[145 : 300 + 4 * stretch] = np.asarray(lower)
        frames.append(frame)
    write_video(tmp_path / "anna" / "talks.mkv", frames)

    out = tmp_path / "model.safetensors"
    sizes = ["--identity-components", "4", "--expression-components", "3", "--processes", "1", "--rounds", "2"]
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "--out", str(out), *sizes], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    model = MorphableModel.load(out)
    assert (len(model.identity), len(model.expression)) == (4, 3)
    assert abs(interocular(model.mean_68) - 1) < 1e-3
    # one person gives a face like the one that many people give
    assert np.linalg.norm(model.mean_68 - morphable().mean_68, axis=-1).mean() < 0.15
    figures = load(out, framework="numpy")[1]
    assert figures["people"] == "3 portraits, 1 speakers" and figures["frames"] == "4"
