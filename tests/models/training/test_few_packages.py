"""Rented machines have torch, numpy, OpenCV and safetensors, and nothing else that this project depends on."""

import os
import subprocess
import sys

from tests.support.paths import SCRIPTS
from tests.support.prepared import write_prepared
from tests.support.scripts import run_script

BLOCKED = (
    *("accelerate", "ai_edge_litert", "aiohttp", "aiortc", "av", "einops", "msgspec", "PIL", "prometheus_client"),
    *("psutil", "scipy", "sounddevice", "soxr", "tqdm", "transformers", "typer", "zmq"),
)
#: A training's modules, and a bundle that is unpacked by the script.
PROGRAM = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({BLOCKED!r}))
import avatard.models.evaluation.motion_streams
import avatard.models.evaluation.video_validation
import avatard.models.training.atom.device_train
import avatard.models.training.loop
import avatard.models.training.mcvdm.latent_cache
import avatard.models.training.mcvdm.train_autoencoder
import avatard.models.training.mcvdm.train_diffusion
from avatard.models.training.mcvdm.recipe import McvdmRecipe
from avatard.models.training.processes import SingleProcess, start
from avatard.models.training.recipe import load_recipe
assert isinstance(start("no", "cpu"), SingleProcess)
load_recipe(McvdmRecipe, "mcvdm_gpu")
for name in ("train_mcvdm", "train_atom_bundle"):
    runpy.run_path(f"{SCRIPTS}/{{name}}.py")["options"]()
runpy.run_path({str(SCRIPTS / "pack_data.py")!r}, run_name="__main__")
"""


def test_training_and_unpacking_need_few_packages(tmp_path):
    data = write_prepared(tmp_path / "data", [("lrw_ar", "1", "a01", 3)])
    assert run_script("pack_data", "pack", data, tmp_path / "bundle") == 0
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, "unpack", str(tmp_path / "bundle"), str(tmp_path / "back")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 clips, 3 frames" in done.stdout
