"""The process that writes: it ends a file by itself, its death is told, and nothing it waits for lasts."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avatard.media import writer_process
from avatard.media.live_writer import LiveWriterError
from avatard.media.writer_process import Setup, VanishedError, WriterProcess
from tests.support.flashes import SIDE, decoded, offsets_ms, pcm, picture
from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def module(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def begin():
    begun: list[WriterProcess] = []

    def make(target: object, size: tuple[int, int] = (SIDE, SIDE)) -> WriterProcess:
        begun.append(WriterProcess(Setup(str(target), size)))
        return begun[-1]

    yield make
    for writer in begun:
        writer.close()


def write(writer, indexes):
    for index in indexes:
        writer.write(index, picture(index), pcm(index))


def test_a_file_is_whole_once_it_is_finished(tmp_path, begin):
    writer = begin(tmp_path / "out.mp4")
    writer.connect()
    write(writer, range(60))
    writer.finish()
    assert len(decoded(tmp_path / "out.mp4", "video")) == 60
    assert np.abs(offsets_ms(tmp_path / "out.mp4")).max() <= 40


def test_a_file_whose_process_is_killed_plays(tmp_path, begin):
    writer = begin(tmp_path / "out.mp4")
    writer.connect()
    with pytest.raises(VanishedError, match="out.mp4: no answer, or its process was ended$"):
        for index in range(10_000):
            writer.write(index, picture(index), pcm(index))
            if index == 300:
                writer.kill()
    shown = len(decoded(tmp_path / "out.mp4", "video"))
    # 300 frames were handed over, and at most 17 of them wait in the pipe and 8 KiB more.
    assert shown >= 300 - 17 - 50
    assert np.abs(offsets_ms(tmp_path / "out.mp4")).max() <= 40


DAEMON = """
import os, signal, sys
from avatard.media.writer_process import Setup, WriterProcess
from tests.support.flashes import SIDE, pcm, picture
writer = WriterProcess(Setup(sys.argv[1], (SIDE, SIDE)))
writer.connect()
print(writer._process.pid, flush=True)
for index in range(90):
    writer.write(index, picture(index), pcm(index))
writer._frames.write(bytes(100))
writer._frames.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_file_whose_daemon_is_killed_is_whole(tmp_path):
    """The end of what it reads is within a frame."""
    path = tmp_path / "out.mp4"
    daemon = subprocess.run(
        [sys.executable, "-c", DAEMON, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=60
    )
    assert daemon.returncode == -signal.SIGKILL
    wait_for_exit(int(daemon.stdout))
    assert len(decoded(path, "video")) == 90
    assert path.read_bytes()[40:44] != b"moof" and b"uuid" in path.read_bytes(), "ended in good order"


def wait_for_exit(pid: int) -> None:
    """Of a process whose parent is gone."""
    import psutil

    try:
        psutil.Process(pid).wait(timeout=30)
    except psutil.NoSuchProcess:
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("rtmp://127.0.0.1:{port}/live/secret", r"^rtmp://127.0.0.1:\d+/live/\*\*\*: Connection refused$"),
        ("rtmp://nosuch.invalid/live/secret", r"^rtmp://nosuch.invalid/live/\*\*\*: "),
        ("{folder}/none/out.mp4", "none/out.mp4: No such file or directory$"),
    ],
)
def test_what_cannot_be_written_is_one_line(tmp_path, begin, target, said):
    writer = begin(target.format(port=free_port(), folder=tmp_path))
    with pytest.raises(LiveWriterError, match=said):
        writer.connect()


def test_a_receiver_that_never_answers_is_given_up(monkeypatch, begin):
    monkeypatch.setattr(writer_process, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        writer = begin(f"rtmp://127.0.0.1:{silent.getsockname()[1]}/live/key")
        with pytest.raises(VanishedError, match="no answer"):
            writer.connect()


def test_a_machine_without_room_for_a_process_says_so(monkeypatch):
    def refuse(*command, **options):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(VanishedError, match="^talk.mp4: no process for it: Cannot allocate memory$"):
        WriterProcess(Setup("talk.mp4", (SIDE, SIDE)))


def test_a_disk_that_is_full_says_so(tmp_path, begin):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    path = tmp_path / "out.mkv"
    os.symlink("/dev/full", path)
    writer = begin(path)
    with pytest.raises(LiveWriterError, match="out.mkv: No space left on device$"):
        writer.connect()
        write(writer, range(1000))
