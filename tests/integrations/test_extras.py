"""Without their packages the integrations say what to install, and nothing else imports them."""

import importlib
import subprocess
import sys

import pytest

from avatard.errors import UserError
from avatard.integrations.extras import needs
from tests.support.paths import ROOT

ABSENT = "import sys; sys.modules['livekit'] = sys.modules['pipecat'] = sys.modules['ray'] = None; "


@pytest.mark.parametrize(
    ("module", "package", "name"),
    [
        ("integrations.livekit", "livekit", "livekit"),
        ("integrations.pipecat", "pipecat", "pipecat"),
        ("cluster.app", "ray", "cluster"),
    ],
)
def test_what_is_missing_is_named(module, package, name):
    code = f"{ABSENT}import avatard.{module}"
    found = subprocess.run([sys.executable, "-P", "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True)
    last = found.stderr.decode().splitlines()[-1]
    assert last.endswith(f"MissingExtraError: {package} is not installed: pip install 'avatard[{name}]'")


def test_the_daemon_and_the_ingress_import_none_of_them():
    code = f"{ABSENT}import avatard.cli, avatard.commands.serve, avatard.gateways.http, avatard.cluster.ingress"
    assert subprocess.run([sys.executable, "-P", "-c", code], env={"PYTHONPATH": str(ROOT)}).returncode == 0


def test_another_package_that_is_missing_is_not_mistaken_for_it():
    with pytest.raises(ModuleNotFoundError), needs("livekit", "livekit"):
        importlib.import_module("nowhere_to_be_found")
    with pytest.raises(UserError), needs("livekit", "nowhere_to_be_found"):
        importlib.import_module("nowhere_to_be_found.at_all")
