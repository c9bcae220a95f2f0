import hashlib
import socket
import subprocess
import sys

import pytest
import torch

from avatard.commands.doctor import Check, examine, table
from avatard.config import Audio, Config, Inference, Motion, Output, Server, Speech, Video, Webrtc, Zmq
from avatard.models import checkpoint


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """One network ships; the returned configuration uses it for everything."""
    monkeypatch.setattr(checkpoint, "weights_dir", lambda: tmp_path)
    checkpoint.save(tmp_path / "tiny.safetensors", {"a": torch.zeros(3)}, {})
    digest = hashlib.sha256((tmp_path / "tiny.safetensors").read_bytes()).hexdigest()
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  tiny.safetensors\n")
    return tmp_path


def configured(**sections: object) -> Config:
    tiny = {"speech": Speech(weights="tiny"), "motion": Motion(weights="tiny"), "video": Video(weights="tiny")}
    return Config(**{"server": Server(port=0), **tiny, **sections})  # type: ignore[arg-type]


def found(config: Config) -> dict[str, Check]:
    return {check.what: check for check in examine(config)}


def test_a_whole_installation_lacks_nothing(weights):
    checks = found(configured())
    assert {check.state for check in checks.values()} <= {"ok", "note"}
    for what in ("Python", "CPU cores", "CPU features", "torch", "codecs", "PortAudio", "HTTP port", "motion.weights"):
        assert what in checks
    assert checks["shipped weights"].found == "tiny.safetensors, 0.0 MB, intact"
    assert torch.__version__ in checks["torch"].found


def test_the_device_of_the_networks_is_shown_or_missing(weights, monkeypatch):
    on_cpu = found(configured(inference=Inference(device="cpu")))["device"]
    assert on_cpu.state == "ok" and on_cpu.found.startswith("cpu, networks in ")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    lacking = found(configured(inference=Inference(device="cuda")))["device"]
    assert lacking.state == "missing" and "built without CUDA" in lacking.found


def test_damaged_and_absent_weights_are_missing(weights):
    path = weights / "tiny.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    checks = found(configured(video=Video(weights="elsewhere/net.safetensors")))
    for what, why in (
        ("shipped weights", "is damaged"),
        ("motion.weights", "is damaged"),
        ("video.weights", "no weights at"),
    ):
        assert checks[what].state == "missing"
        assert why in checks[what].found
    (weights / "SHA256SUMS").write_text("nonsense\n")
    assert found(configured())["weights"].state == "missing"


def test_weights_of_the_hub_are_not_looked_for(weights):
    assert "speech.weights" not in found(configured(speech=Speech(encoder="hubert", weights="hub/name")))


def test_a_port_in_use_is_missing(weights):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        checks = found(configured(server=Server(port=port), zmq=Zmq(publish=f"tcp://127.0.0.1:{port}")))
    for what in ("HTTP port", "ZeroMQ publisher"):
        assert checks[what].state == "missing"
        assert f"127.0.0.1:{port}" in checks[what].found
    checks = found(configured(server=Server(host="a..b", port=port)))
    assert checks["HTTP port"] == Check("HTTP port", "missing", f"a..b:{port}: not a valid host name: choose another")
    checks = found(configured(server=Server(port=port), zmq=Zmq(publish=f"tcp://[::1]:{port}", audio="ipc:///a")))
    assert checks["HTTP port"].state == checks["ZeroMQ publisher"].state == "ok"
    assert "ZeroMQ audio in" not in checks


@pytest.mark.parametrize(
    ("section", "why"),
    [
        (Zmq(publish="localhost:5556"), "'localhost:5556' is no ZeroMQ endpoint"),
        (Zmq(audio="tcp://*:5557"), "reachable from other machines"),
        (Zmq(publish="tcp://127.0.0.1:5556", secret_key_file="none.key_secret"), "none.key_secret"),
    ],
)
def test_zeromq_that_serve_would_refuse_is_missing(weights, section, why):
    check = found(configured(zmq=section))["ZeroMQ"]
    assert check.state == "missing" and why in check.found


def test_what_an_option_needs_is_missing_only_with_the_option(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert found(configured())["PortAudio"].state == "note"
    assert found(configured(audio=Audio(source="mic")))["PortAudio"].state == "missing"
    assert found(configured(webrtc=Webrtc(codec="h264")))["codecs"].state == "ok"


def test_the_table_is_aligned():
    text = table([Check("CPU", "ok", "2"), Check("HTTP port", "missing", "taken")])
    assert text == "ok       CPU        2\nmissing  HTTP port  taken"


def test_the_exit_code_says_whether_something_is_missing():
    ran = subprocess.run(
        [sys.executable, "-m", "avatard", "doctor", "--set", "server.port=0", "--set", "motion.weights=absent"],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert ran.stderr == ""
    assert "missing  motion.weights" in ran.stdout


def test_what_the_outputs_need_is_checked(weights):
    push = ("rtmp://live.example/app/secret",)
    settings = Output(push=push, record="talk.avi", camera="auto", sound="no such device")
    checks = [check for check in examine(configured(output=settings)) if check.what.endswith(("output", "camera"))]
    found = [check.found for check in checks]
    assert [check.what for check in checks] == ["output", "output", "virtual camera", "sound output"]
    assert checks[0] == Check("output", "ok", "rtmp://live.example/app/***")
    assert checks[1].state == checks[3].state == "missing" and not any("secret" in text for text in found)
