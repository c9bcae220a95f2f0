"""Speak a WAV file through a running avatar, over its WebSocket, and wait until viewers have heard it.

python scripts/examples/say.py hello.wav
python scripts/examples/say.py hello.wav "wss://avatar.example:8080/ws/audio?token=..."
"""

import asyncio
import secrets
import sys
import wave

import aiohttp

URL = "ws://127.0.0.1:8080/ws/audio"


async def say(path: str, url: str = URL) -> None:
    """Speak a WAV file with 16-bit samples, mono or stereo."""
    name = secrets.token_hex(4)
    async with aiohttp.ClientSession() as http, http.ws_connect(url) as socket:
        with wave.open(path) as file:
            await socket.send_json({"sample_rate": file.getframerate(), "channels": file.getnchannels()})
            await socket.send_json({"type": "start_of_utterance", "id": name})
            while samples := file.readframes(4800):
                await socket.send_bytes(samples)  # waits while five minutes of speech are queued
            await socket.send_json({"type": "end_of_utterance"})
        async for message in socket:
            event = message.json()
            print(event["type"], event["data"])
            ended = event["data"].get("id") == name and event["data"].get("state") == "ended"
            if ended or event["data"].get("fatal"):
                break


if __name__ == "__main__":
    try:
        asyncio.run(say(*sys.argv[1:]))
    except (OSError, EOFError, wave.Error) as error:
        sys.exit(f"say.py: {str(error) or 'the file is empty'}")
