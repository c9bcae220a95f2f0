"""Speak a WAV file of 24 kHz through the WebSocket that is shaped like LiveAvatar's, as an agent of theirs does.

python scripts/examples/agent_speak.py hello.wav
python scripts/examples/agent_speak.py hello.wav "wss://avatar.example:8080/ws/agent?token=..."
"""

import asyncio
import base64
import secrets
import sys
import wave

import aiohttp

URL = "ws://127.0.0.1:8080/ws/agent"


async def speak(path: str, url: str = URL) -> None:
    """Speak a WAV file with 16-bit mono samples at 24 kHz."""
    name = secrets.token_hex(4)
    with wave.open(path) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (24_000, 1, 2):
            sys.exit(f"{path}: expected 16-bit mono samples at 24 kHz")
        samples = file.readframes(file.getnframes())
    async with aiohttp.ClientSession() as http, http.ws_connect(url) as socket:
        while (await socket.receive_json()).get("state") != "connected":
            pass
        for start in range(0, len(samples), 19_200):  # 400 ms
            audio = base64.b64encode(samples[start : start + 19_200]).decode()
            await socket.send_json({"type": "agent.speak", "event_id": name, "audio": audio})
        await socket.send_json({"type": "agent.speak_end", "event_id": name})
        async for message in socket:
            event = message.json()
            print(event)
            if event["type"] in ("agent.speak_ended", "agent.speak_interrupted", "error"):
                break


if __name__ == "__main__":
    asyncio.run(speak(*sys.argv[1:]))
