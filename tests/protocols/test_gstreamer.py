"""GStreamer's own WebRTC client, with its RSA certificate, watches by WHEP."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.serving import running_server

PYTHON = Path("/usr/bin/python3")  # the one that the system's gi belongs to
INSTALLED = """
import gi
for name in ("Gst", "GstSdp", "GstWebRTC"):
    gi.require_version(name, "1.0")
from gi.repository import Gst
Gst.init(None)
missing = [name for name in ("webrtcbin", "nicesrc", "vp8dec", "dtlsdec") if Gst.ElementFactory.find(name) is None]
assert not missing, missing
"""


def is_installed() -> bool:
    if not PYTHON.exists():
        return False
    return subprocess.run([PYTHON, "-c", INSTALLED], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(
    not is_installed(),
    reason="no GStreamer (Debian: apt install gstreamer1.0-{plugins-good,plugins-bad,nice} gir1.2-gst-plugins-bad-1.0)",
)
@pytest.mark.parametrize("bundle", ["max-bundle", "none"])
@pytest.mark.parametrize("codec", ["VP8", "H264"])
async def test_gstreamer_watches(monkeypatch, codec, bundle):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    async with running_server() as (_, url):
        viewer = await asyncio.create_subprocess_exec(
            PYTHON,
            Path(__file__).with_name("gstreamer_viewer.py"),
            f"{url}/whep",
            codec,
            bundle,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"GST_DEBUG": "1"},
        )
        try:
            async with asyncio.timeout(40):
                output, _ = await viewer.communicate()
        finally:
            if viewer.returncode is None:
                viewer.kill()
        assert viewer.returncode == 0, output.decode()
