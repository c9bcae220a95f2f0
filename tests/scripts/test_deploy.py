"""scripts/deploy/, as far as it can be held without Docker: what is named there exists and is understood."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_group

from avatard.cli import app
from avatard.cluster.options import parse
from avatard.config import Config
from avatard.config_loader import load
from avatard.gateways.http import Server
from avatard.session.session import Session
from tests.support.paths import ROOT, SCRIPTS
from tests.support.serving import config, portrait, running_server

DEPLOY = SCRIPTS / "deploy"
ANALYZE = shutil.which("systemd-analyze")


def instructions() -> list[tuple[str, str]]:
    """Name and text of each instruction of the Dockerfile."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, text.strip()) for name, _, text in (line.partition(" ") for line in joined.splitlines()) if name]


def copied() -> set[str]:
    """What the Dockerfile copies out of the checkout."""
    words = [text.split() for name, text in instructions() if name == "COPY" and not text.startswith("--from")]
    return {source for *sources, _ in words for source in sources}


def image_environment() -> dict[str, str]:
    words = [word for name, text in instructions() if name == "ENV" for word in shlex.split(text)]
    return dict(word.split("=", 1) for word in words)


def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["avatard"]  # type: ignore[no-any-return]


def understood(arguments: list[str], environment: dict[str, str]) -> Config:
    """The configuration of `avatard serve ...` in this environment; fails where a flag or a key is unknown."""
    verb, *rest = arguments
    get_group(app).commands[verb].make_context(verb, rest)
    return load(environ=environment).config


def unit() -> dict[str, list[str]]:
    settings: dict[str, list[str]] = {}
    for line in (DEPLOY / "avatard.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            settings.setdefault(key, []).append(value)
    return settings


def test_what_the_image_copies_is_in_the_repository():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("no git checkout")
    files = tracked.stdout.splitlines()
    for source in copied():
        assert any(file == source or file.startswith(f"{source}/") for file in files), source
    links = {file for file in files if (ROOT / file).is_symlink() and file.partition("/")[0] in copied()}
    for link in links:
        target = (ROOT / link).resolve().relative_to(ROOT)
        assert target.parts[0] in copied(), f"{link} leads to {target}, which is not copied"


def test_nothing_but_what_is_copied_is_sent_to_the_builder():
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied() and "*" in lines


def test_the_weights_are_in_the_image_and_nobody_is_root():
    assert "models" in copied() and not list((ROOT / "models" / "weights").glob("*.part"))
    assert [text for name, text in instructions() if name == "USER"][-1] not in ("root", "0")
    assert all(":" in text.split()[0] for name, text in instructions() if name == "FROM"), "a base without a version"


def test_the_command_of_the_image_is_understood():
    (entry,) = [json.loads(text) for name, text in instructions() if name == "ENTRYPOINT"]
    (command,) = [json.loads(text) for name, text in instructions() if name == "CMD"]
    assert entry == ["avatard"]
    assert understood(command, image_environment()).server.host == "0.0.0.0"


async def test_the_health_check_of_the_image_asks_a_route_that_tells(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (check,) = [text for name, text in instructions() if name == "HEALTHCHECK"]
    program, *arguments = json.loads(check.partition("CMD ")[2])
    assert program == "python"
    path = re.search(r"/\w+z\b", arguments[1])
    resources = Server(config(), Session(config(), portrait())).application().router.resources()
    assert path and path[0] in {resource.canonical for resource in resources}
    async with running_server() as (_, url):
        port = url.rpartition(":")[2]
        for given, code in ((port, 0), ("9", 1)):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                env=os.environ | {"AVATARD_SERVER__PORT": given},
                stderr=asyncio.subprocess.DEVNULL,
            )
            assert await process.wait() == code


def test_compose_publishes_the_ports_that_it_configures():
    service = compose()
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    given = {key: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for key, value in service["environment"].items()}
    given = {key: re.sub(r"\$\{\w+:\?.*\}", "203.0.113.5", value) for key, value in given.items()}
    found = understood(service["command"], image_environment() | given)
    udp = next(port for port in service["ports"] if port.endswith("/udp"))
    assert udp == f"{found.webrtc.udp_ports}:{found.webrtc.udp_ports}/udp" and found.webrtc.announce
    assert any(port.endswith(f":{found.server.port}") for port in service["ports"])
    assert service["cap_drop"] == ["ALL"] and service["read_only"] and service["tmpfs"] == ["/tmp"]
    assert dict(instructions())["EXPOSE"] == f"{found.server.port}/tcp {found.webrtc.udp_ports}/udp"


def test_the_services_command_is_understood():
    (command,) = unit()["ExecStart"]
    assert Path(command.split()[0]).name == "avatard"
    understood(shlex.split(command)[1:], {})


@pytest.mark.skipif(ANALYZE is None, reason="no systemd-analyze")
def test_systemd_accepts_the_service_and_finds_it_hardened(tmp_path):
    text = (DEPLOY / "avatard.service").read_text().replace("/opt/avatard/bin/avatard", "/bin/true")
    service = tmp_path / "avatard.service"
    service.write_text(text)
    for verb in (["verify"], ["security", "--offline=true", "--threshold=20"]):
        ran = subprocess.run([str(ANALYZE), "--no-pager", *verb, str(service)], capture_output=True, text=True)
        assert ran.returncode == 0 and "Unknown key" not in ran.stderr, ran.stdout + ran.stderr


def test_the_readme_names_files_that_exist():
    text = (DEPLOY / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (DEPLOY / link).exists(), link
    assert {path.name for path in DEPLOY.iterdir()} - {"README.md", "Dockerfile.dockerignore"} <= set(
        re.findall(r"\]\(([^)#:/]+)\)", text)
    )


def test_the_arguments_of_the_cluster_are_understood():
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    (application,) = yaml.safe_load((DEPLOY / "cluster.yaml").read_text())["applications"]
    module, _, name = application["import_path"].partition(":")
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
    assert f"\ndef {name}(" in source
    options = parse(application["args"])
    command = options.command("10.0.0.7")
    get_group(app).commands["serve"].make_context("serve", command[command.index("serve") + 1 :])
