"""A server with the test engine in a process of its own, which a test may stop or kill: `… server_process PORT`."""

import asyncio
import sys

from avatard.commands.serve import serve
from avatard.config import Server
from tests.support.serving import config, portrait

if __name__ == "__main__":
    settings = config(server=Server(port=int(sys.argv[1])))
    asyncio.run(serve(settings, portrait(), "tests.support.warp_engine:make", print_url=True))
