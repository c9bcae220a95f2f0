"""`avatard serve` as a process: it says where it is, and ends cleanly on a signal."""

import asyncio
import os
import signal
import sys

import aiohttp
import cv2
import numpy as np
import pytest

from avatard.media.pcm import to_pcm16
from tests.support.flashes import decoded
from tests.support.paths import ROOT
from tests.support.serving import beeps
from tests.support.sounds import write_wav

RUN = """
import sys
from pathlib import Path
from avatard import config_loader
from avatard.cli import report_user_errors
from avatard.log import setup
from avatard.commands.serve import run
config = config_loader.load("nano", ["server.port=0", *sys.argv[3:]]).config
setup(config.log)
with report_user_errors():
    run(config, Path(sys.argv[1]), sys.argv[2], print_url=True)
"""


@pytest.fixture
def portrait(tmp_path):
    path = tmp_path / "me.png"
    cv2.imwrite(str(path), np.full((256, 256, 3), 90, np.uint8))
    return path


async def start(portrait, *settings, engine="tests.support.warp_engine:make"):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUN, str(portrait), engine, *settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None
    async with asyncio.timeout(60):
        url = (await process.stdout.readline()).decode().strip().rstrip("/")
        lines: list[str] = []
        while not url and (line := (await process.stderr.readline()).decode()):
            lines.append(line)
    if not url:
        await process.wait()
    return process, url, lines


async def test_a_signal_ends_it_cleanly_with_clients_connected(portrait):
    process, url, _ = await start(portrait)
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{url}/ws/audio") as socket:
        await socket.send_json({"sample_rate": 16000})
        await socket.send_bytes(to_pcm16(beeps(2)).tobytes())
        while (await socket.receive_json(timeout=10))["type"] != "bot-started-speaking":
            pass
        process.send_signal(signal.SIGTERM)
        message = await socket.receive(timeout=10)
        while message.type is aiohttp.WSMsgType.TEXT:
            message = await socket.receive(timeout=10)
        assert message.type is aiohttp.WSMsgType.CLOSE and message.data == 1001
    rest = (await process.stderr.read()).decode()
    assert await asyncio.wait_for(process.wait(), 60) == 0
    assert "Traceback" not in rest and "shutting down" in rest


async def test_ctrl_c_of_a_terminal_leaves_no_traceback(portrait):
    process, _, _ = await start(portrait)
    os.killpg(process.pid, signal.SIGINT)  # a terminal signals every process that was started in it
    rest = (await process.stderr.read()).decode()
    assert await asyncio.wait_for(process.wait(), 60) == 0
    assert "Traceback" not in rest and "shutting down" in rest


async def test_a_sound_file_is_spoken_from_the_start(portrait, tmp_path):
    write_wav(tmp_path / "voice.wav", beeps(3))
    process, url, _ = await start(portrait, f"audio.source={tmp_path / 'voice.wav'}")
    async with aiohttp.ClientSession() as http:
        async with asyncio.timeout(20):
            speaking = False
            while not speaking:
                async with http.get(f"{url}/api/status") as response:
                    speaking = (await response.json())["speaking"]
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 60) == 0


async def test_what_is_recorded_is_whole_when_it_is_stopped(portrait, tmp_path):
    write_wav(tmp_path / "voice.wav", beeps(2))
    process, url, _ = await start(
        portrait, f"audio.source={tmp_path / 'voice.wav'}", f"output.record={tmp_path / 'talk.mp4'}"
    )
    async with aiohttp.ClientSession() as http, asyncio.timeout(60):
        seconds = 0.0
        while seconds < 1:
            async with http.get(f"{url}/api/outputs") as response:
                seconds = (await response.json())["outputs"][0]["seconds"]
    process.send_signal(signal.SIGTERM)
    rest = (await process.stderr.read()).decode()
    assert await asyncio.wait_for(process.wait(), 20) == 0 and "Traceback" not in rest
    assert len(decoded(tmp_path / "talk.mp4", "video")) >= 25
    assert b"uuid" in (tmp_path / "talk.mp4").read_bytes(), "it was ended in good order"


@pytest.mark.parametrize(
    ("settings", "engine", "said"),
    [
        (
            ["audio.source=none.wav"],
            "tests.support.warp_engine:make",
            "none.wav cannot be read as sound: No such file or directory",
        ),
        ([], "tests.support.warp_engine:make_broken", "weights are missing: run the trainer"),
        (
            ["output.record=talk.avi"],
            "tests.support.warp_engine:make_broken",
            "talk.avi: expected a name that ends in .mp4, .mkv, .webm",
        ),
        (
            ["output.push=http://live.example/secret"],
            "tests.support.warp_engine:make_broken",
            "cannot push to http://: expected rtmp://",
        ),
        (
            ["server.host=a..b"],
            "tests.support.warp_engine:make_broken",
            "cannot listen on a..b:0: not a valid host name",
        ),
        (
            ["zmq.publish=ipc:///no/such/folder/avatard"],
            "tests.support.warp_engine:make_broken",
            "cannot bind ipc:///no/such/folder/avatard: No such file or directory",
        ),
        (
            ["picture.background=wall.png"],
            "tests.support.warp_engine:make_broken",
            "picture.background = 'wall.png': no such file",
        ),
        (["portrait.more=smile.jpg"], "tests.support.warp_engine:make_broken", "smile.jpg: no such file"),
        (["portrait.more=smile.mp4"], "tests.support.warp_engine:make_broken", "smile.mp4"),
        (["server.host=203.0.113.1"], "tests.support.warp_engine:make", "cannot listen on 203.0.113.1:0"),
        (
            ["server.tls_certificate_file=a.pem", "server.tls_key_file=b.pem"],
            "tests.support.warp_engine:make",
            "cannot use the TLS files a.pem and b.pem",
        ),
    ],
)
async def test_what_cannot_be_served_is_one_line(portrait, settings, engine, said):
    process, url, lines = await start(portrait, *settings, engine=engine)
    assert not url and process.returncode == 1
    assert lines[-1].startswith(f"avatard: {said}")
    assert "Traceback" not in "".join(lines)
