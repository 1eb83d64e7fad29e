"""A client in a process of its own: asks at a steady rate, whatever becomes of earlier questions.

Reads {url, bodies, per_second, seconds} as JSON from standard input, and writes a line for each question: which body,
when it was due (Unix seconds), how long after that it was answered, the answer, its version, or the error.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp


async def ask(session: aiohttp.ClientSession, url: str, index: int, body: dict[str, Any], due: float) -> dict[str, Any]:
    asked: dict[str, Any] = {"body": index, "due": due}
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            told = await response.json()
            if response.status != 200:
                return asked | {"seconds": time.time() - due, "error": f"{response.status}: {told}"}
            answer = told["choices"][0]["message"]["content"]
            named = {"version": told["version"], "digest": told["digest"]}
            return asked | named | {"answer": answer, "seconds": time.time() - due}
    except (aiohttp.ClientError, TimeoutError) as error:
        return asked | {"seconds": time.time() - due, "error": f"{type(error).__name__}: {error}"}


async def run(url: str, bodies: list[dict[str, Any]], per_second: float, seconds: float) -> None:
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        start, asked = time.time(), list[asyncio.Task[dict[str, Any]]]()
        for number in range(int(per_second * seconds)):
            due = start + number / per_second
            await asyncio.sleep(max(0.0, due - time.time()))
            index = number % len(bodies)
            asked.append(asyncio.create_task(ask(session, url, index, bodies[index], due)))
        for task in asked:
            print(json.dumps(await task), flush=True)


if __name__ == "__main__":
    asyncio.run(run(**json.loads(sys.stdin.read())))
