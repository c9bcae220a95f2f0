"""`/api/outputs`: what may be begun is begun, listed and ended; what may not is one line."""

import json

import pytest
from aiohttp import web

from avatard.config import Output as OutputConfig
from avatard.gateways.middleware import json_errors
from avatard.gateways.output_routes import add_outputs
from avatard.gateways.outputs import Outputs
from tests.support.flashes import entry
from tests.support.paths import ROOT
from tests.support.serving import until
from tests.support.still import StillSession


@pytest.fixture
async def serving(aiohttp_client, tmp_path):
    session = StillSession()
    config = OutputConfig(record_directory=str(tmp_path), push_hosts=("live.example",))
    outputs = Outputs(config, session)  # type: ignore[arg-type]
    app = web.Application(middlewares=[json_errors])
    add_outputs(app, outputs)
    yield session, await aiohttp_client(app)
    await outputs.stop()


async def test_a_recording_is_begun_listed_and_ended(serving, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    session, client = serving
    async with client.post("/api/outputs", json={"file": "talk.webm"}) as response:
        made = await response.json()
        assert response.status == 201 and made["kind"] == "record" and made["target"] == "talk.webm"
    await until(lambda: session.sinks, 60)
    for index in range(30):
        session.sinks[0].play(entry(index))
    async with client.get("/api/outputs") as response:
        assert [output["state"] for output in (await response.json())["outputs"]] == ["connected"]
    async with client.delete(f"/api/outputs/{made['id']}") as response:
        assert response.status == 200
        ended = await response.json()
    assert (ended["state"], ended["seconds"], ended["error"]) == ("ended", 1.2, "")
    assert (tmp_path / "talk.webm").stat().st_size > 1000
    async with client.get("/api/outputs") as response:
        assert await response.json() == {"outputs": []}
    async with client.post("/api/outputs", json={"file": "talk.webm"}) as response:
        assert response.status == 400 and (await response.json())["code"] == "exists"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "bad-request"),
        (b"[]", 400, "bad-request"),
        (b"{}", 400, "bad-request"),
        (b'{"url": "rtmp://a/b", "file": "c.mp4"}', 400, "bad-request"),
        (b'{"path": "c.mp4"}', 400, "bad-request"),
        (b'{"file": "../c.mp4"}', 400, "output"),
        (b'{"file": "c.avi"}', 400, "output"),
        (b'{"url": "http://a/b"}', 400, "output"),
        (b'{"url": "rtmp://elsewhere/app/key"}', 403, "forbidden"),
    ],
)
async def test_what_cannot_be_begun_is_one_line(serving, body, status, code):
    _, client = serving
    async with client.post("/api/outputs", data=body, headers={"Content-Type": "application/json"}) as response:
        answer = await response.json()
        assert (response.status, answer["code"]) == (status, code) and "\n" not in answer["error"]
    async with client.delete("/api/outputs/push-1") as response:
        assert response.status == 404
    async with client.post("/api/outputs", data=b"{}", headers={"Content-Type": "text/plain"}) as response:
        assert response.status == 415


async def test_the_output_of_the_documentation_is_one_of_these(serving, tmp_path):
    _, client = serving
    text = (ROOT / "protocols" / "README.md").read_text(encoding="utf-8").split("### Outputs")[1]
    documented = json.loads(text.split("```json\n")[1].split("\n```")[0])
    async with client.post("/api/outputs", json={"url": "rtmp://live.example/app/secret"}) as response:
        made = await response.json()
    assert made.keys() == documented.keys() and made["target"] == documented["target"]
    for key in made:
        assert f"| `{key}` |" in text
