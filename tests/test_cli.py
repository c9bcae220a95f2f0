import subprocess
import sys
import tomllib

import pytest
from typer.main import get_group
from typer.testing import CliRunner

from avatard import __version__
from avatard.cli import EXAMPLE_PORTRAIT, app, report_user_errors
from avatard.errors import UserError

HEAVY = {"torch", "transformers", "aiortc", "av", "cv2", "numpy"}


def avatard(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "avatard", *arguments], capture_output=True, text=True, env={"PATH": "", **environment}
    )


def test_help_names_the_verbs_and_imports_nothing_heavy():
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "avatard", "--help"], capture_output=True, text=True, check=True
    )
    assert "doctor" in ran.stdout and "config" in ran.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ran.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize("verb", sorted(get_group(app).commands))
def test_every_verb_explains_itself(verb):
    ran = CliRunner().invoke(app, [verb, "--help"])
    assert ran.exit_code == 0
    assert "Usage" in ran.stdout


def test_version():
    assert avatard("--version").stdout == f"avatard {__version__}\n"


def test_config_prints_toml_and_the_source_of_each_value():
    ran = avatard("config", "--set", "stream.profile=quality", AVATARD_SERVER__PORT="9000")
    assert ran.returncode == 0
    assert tomllib.loads(ran.stdout)["server"]["port"] == 9000
    assert "port = 9000  # environment AVATARD_SERVER__PORT: " in ran.stdout
    assert "fade_frames = 4  # command line, profile quality: " in ran.stdout


def test_a_mistake_in_the_configuration_is_one_line_and_exit_code_2():
    ran = avatard("doctor", "--set", "stream.hops=3")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "avatard: stream.hops: unknown key; did you mean stream.hop_frames? (command line)\n"


def test_an_unknown_verb_or_option_is_exit_code_2_without_a_traceback():
    for arguments in (["conduct"], ["config", "--colour"]):
        ran = avatard(*arguments)
        assert ran.returncode == 2
        assert "Traceback" not in ran.stderr


def test_user_errors_are_one_line_and_others_are_bugs(capsys):
    with pytest.raises(SystemExit) as stopped, report_user_errors():
        raise UserError("no such portrait")
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "avatard: no such portrait\n"
    with pytest.raises(ZeroDivisionError), report_user_errors():
        print(1 / 0)


def test_what_is_measured_has_a_place_to_go_before_it_is_measured(tmp_path):
    for verb in (["bench"], ["bench", "serve"]):
        ran = CliRunner().invoke(app, [*verb, "--identity", "me.png", "--json", str(tmp_path / "none" / "out.json")])
        assert ran.exit_code == 2 and "cannot be written" in ran.output


def test_a_short_help_option_and_a_portrait_for_benches():
    assert CliRunner().invoke(app, ["render", "-h"]).exit_code == 0
    assert EXAMPLE_PORTRAIT.is_file()


def test_a_file_is_not_overwritten_without_being_asked(tmp_path):
    output = tmp_path / "out.mp4"
    output.write_text("precious")
    ran = CliRunner().invoke(app, ["render", "--identity", "me.png", "--audio", "a.wav", "-o", str(output)])
    assert ran.exit_code == 2 and "--force to overwrite it" in ran.output
    assert output.read_text() == "precious"


def test_a_receiver_that_is_no_address_is_one_line_before_anything_is_loaded(tmp_path):
    portrait = tmp_path / "me.png"
    portrait.write_bytes(b"not looked at")
    ran = avatard("serve", "--identity", str(portrait), "--vmc", "127.0.0.1", "--vmc", "studio:x")
    assert (ran.returncode, ran.stdout) == (1, "")
    expected = "avatard: 'studio:x' is no receiver: expected HOST or HOST:PORT, such as 127.0.0.1:39539\n"
    assert ran.stderr == expected


@pytest.mark.parametrize("verb", ["serve", "render", "bench"])
def test_a_device_that_cannot_be_is_refused_with_those_that_can(verb):
    given = {"serve": [], "render": ["--audio", "a.wav", "-o", "a.mp4"], "bench": []}[verb]
    ran = avatard(verb, "--identity", "me.png", *given, "--device", "tpu")
    assert (ran.returncode, ran.stdout) == (2, "")
    said = "avatard: inference.device = 'tpu' (command line): expected auto, cpu, mps, cuda or cuda:N\n"
    assert ran.stderr == said
