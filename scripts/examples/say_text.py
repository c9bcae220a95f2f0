"""Let a running avatar say a text, and print its sentences as viewers hear them. Needs `avatard serve --tts …`.

python scripts/examples/say_text.py "Hello. I can speak whatever you type."
python scripts/examples/say_text.py "Hello." "https://avatar.example:8080?token=..."
"""

import asyncio
import secrets
import sys
from urllib.parse import urlsplit

import aiohttp

URL = "http://127.0.0.1:8080"


async def say(text: str, url: str = URL) -> None:
    """Say a text; ends when it was heard, or with the server's reason in one line."""
    name = secrets.token_hex(4)
    at = urlsplit(url)
    query = f"?{at.query}" if at.query else ""
    async with (
        aiohttp.ClientSession(f"{at.scheme}://{at.netloc}") as http,
        http.ws_connect(f"/ws/audio{query}") as events,
    ):
        async with http.post(f"/api/say{query}", json={"text": text, "id": name}) as response:
            answer = await response.json()
        if response.status != 200:
            sys.exit(f"{answer['code']}: {answer['error']}")
        async for message in events:
            event = message.json()
            if event["data"].get("id") != name:
                continue
            if event["type"] == "caption":
                print(f"{event['data']['at_ms'] / 1000:6.2f} s  {event['data']['text']}", flush=True)
            elif event["data"].get("state") == "ended":
                break


if __name__ == "__main__":
    asyncio.run(say(*sys.argv[1:]))
