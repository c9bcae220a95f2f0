"""The daemon of a replica as a process, the register, and the arguments of a cluster."""

import asyncio
import sys

import psutil
import pytest

from avatard.cluster import daemon as module
from avatard.cluster.daemon import Daemon, DaemonError
from avatard.cluster.directory import Member
from avatard.cluster.options import Options, OptionsError, parse
from avatard.cluster.register import FORGOTTEN_SECONDS, Register
from tests.support.paths import ROOT
from tests.support.serving import until

STUB = (sys.executable, "-P", "-m", "tests.support.stub_daemon", "--host", "127.0.0.1")


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def test_it_tells_its_address_and_ends_when_it_is_told():
    daemon = Daemon(STUB, {})
    assert not daemon.running
    await daemon.stop()
    await daemon.start()
    assert daemon.running and daemon.url.startswith("http://127.0.0.1:") and not daemon.url.endswith("/")
    await daemon.stop()
    assert not daemon.running


async def test_one_that_does_not_start_is_an_error(monkeypatch):
    with pytest.raises(DaemonError, match="^the daemon ended with code 3 before it listened: see its log$"):
        await Daemon((sys.executable, "-c", "raise SystemExit(3)"), {}).start()
    monkeypatch.setattr(module, "START_SECONDS", 0.01)
    silent = Daemon((sys.executable, "-c", "import time; time.sleep(600)"), {})
    with pytest.raises(DaemonError, match="^the daemon did not listen within 0 s$"):
        await silent.start()
    assert not silent.running


async def test_one_that_ignores_the_signal_is_killed(monkeypatch):
    monkeypatch.setattr(module, "STOP_SECONDS", 0.1)
    ignoring = "import signal, time; signal.signal(15, signal.SIG_IGN); print('http://a/', flush=True); time.sleep(600)"
    daemon = Daemon((sys.executable, "-c", ignoring), {})
    await daemon.start()
    await daemon.stop()
    assert not daemon.running


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent ended")
async def test_it_ends_when_its_replica_is_killed():
    program = (
        "import asyncio, sys\n"
        "from avatard.cluster.daemon import Daemon\n"
        "async def main():\n"
        "    daemon = Daemon(sys.argv[1:], {})\n"
        "    await daemon.start()\n"
        "    print(daemon.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    command = (sys.executable, "-P", "-c", program, *STUB)
    replica = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert replica.stdout is not None
    pid = int(await replica.stdout.readline())
    assert alive(pid)
    replica.kill()
    await replica.wait()
    await until(lambda: not alive(pid))


def test_replicas_that_are_silent_are_forgotten():
    now = 0.0
    register = Register(lambda: now)
    register.beat("a", Member("http://a"))
    now = FORGOTTEN_SECONDS - 1
    register.beat("b", Member("http://b", draining=True))
    assert set(register.members()) == {"a", "b"} and register.members()["b"].draining
    now += 1
    assert set(register.members()) == {"b"}
    register.leave("b")
    register.leave("nobody")
    assert not register.members()


def test_arguments_of_the_command_line_are_texts():
    options = parse({"portrait": "/data/me.png", "min_replicas": "2", "cpus": "4"})
    assert options == Options("/data/me.png", min_replicas=2, cpus=4.0)
    command = parse({"portrait": "me.png", "serve": ["--profile", "quality"]}).command("10.0.0.7")
    assert command[1:] == (
        "-P -m avatard serve --print-url --host 10.0.0.7 --port 0 --identity me.png --profile quality".split()
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "missing required field `portrait`; there are portrait, serve, "),
        ({"portrait": "a", "replicas": 3}, "unknown field `replicas`"),
        ({"portrait": "a", "cpus": "many"}, "Expected `float`"),
        ({"portrait": "a", "min_replicas": 9}, "min_replicas = 9 is more than max_replicas = 8"),
    ],
)
def test_arguments_that_cannot_be_used_are_one_line(arguments, said):
    with pytest.raises(OptionsError, match="^arguments of the cluster: ") as error:
        parse(arguments)
    assert said in str(error.value) and "\n" not in str(error.value)
