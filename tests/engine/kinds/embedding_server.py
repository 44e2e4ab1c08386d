"""An OpenAI-compatible server that is not llama.cpp's: `--model FOLDER` and `--port` or `--uds`.

It embeds by hashed n-grams: each run of `ngram` characters adds one at its hash, and the vector is
brought to length 1, so that texts with the same words are near each other. `config.json` in the
folder names `dimensions` and `ngram`. EMBEDDER_KEY is the key that `/v1/` asks for. It ends on
SIGINT only, with status 7.
"""

import argparse
import asyncio
import json
import math
import os
import signal
import sys
import zlib
from pathlib import Path
from typing import Any

from aiohttp import web


def embed(text: str, dimensions: int, ngram: int) -> list[float]:
    vector = [0.0] * dimensions
    padded = f" {text.lower()} "
    for start in range(len(padded) - ngram + 1):
        vector[zlib.crc32(padded[start : start + ngram].encode()) % dimensions] += 1.0
    length = math.hypot(*vector) or 1.0
    return [value / length for value in vector]


class Server:
    def __init__(self, folder: Path, names: list[str]) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.names = names

    async def ready(self, _request: web.Request) -> web.Response:
        return web.Response(status=204)

    async def embeddings(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {os.environ['EMBEDDER_KEY']}":
            return web.json_response({"error": {"message": "wrong key"}}, status=401)
        body: dict[str, Any] = await request.json()
        if body["model"] not in self.names:
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        vectors = [embed(text, **self.config) for text in texts]
        return web.json_response(
            {
                "object": "list",
                "model": body["model"],
                "data": [
                    {"object": "embedding", "index": index, "embedding": vector}
                    for index, vector in enumerate(vectors)
                ],
                "usage": {"prompt_tokens": 0, "total_tokens": 0},
            }
        )


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--uds")
    parser.add_argument("--served-model-name", nargs="+", required=True)
    options = parser.parse_args()
    server = Server(options.model, options.served_model_name)
    application = web.Application()
    application.router.add_get("/info/ready", server.ready)
    application.router.add_post("/v1/embeddings", server.embeddings)
    runner = web.AppRunner(application)
    await runner.setup()
    site: web.BaseSite
    if options.uds:
        site = web.UnixSite(runner, options.uds)
    else:
        site = web.TCPSite(runner, "127.0.0.1", options.port)
    await site.start()
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: None)
    loop.add_signal_handler(signal.SIGINT, stopped.set)
    await stopped.wait()
    # A second signal, half a second later, must not meet an interpreter that is ending.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sys.exit(7)


if __name__ == "__main__":
    asyncio.run(main())
