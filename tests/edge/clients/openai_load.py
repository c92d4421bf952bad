"""Requests through OpenAI's own client, its retries off: chats and completions, streamed and whole.

usage: openai_load.py BASE_URL MODEL CLIENTS COUNT ENOUGH

Makes COUNT different requests, again from the first until there is a file ENOUGH, and prints what became of each as one line of
JSON: number, kind, text, finish, tokens, the longest time between two chunks, and the error if there was one.
"""

import asyncio
import itertools
import json
import os
import sys
import time

import openai

# By turns; two of eight are not streamed.
KINDS = ("chat stream", "completion stream") * 3 + ("chat", "completion")
TOKENS_MIN, TOKENS_MAX = 40, 120


def arguments(number: int, model: str) -> tuple[str, dict]:
    kind = KINDS[number % len(KINDS)]
    about = f"Tell me about the sea, number {number}."
    asked = {"model": model, "temperature": 0, "max_tokens": TOKENS_MIN + number * 37 % (TOKENS_MAX - TOKENS_MIN)}
    asked["extra_body"] = {"ignore_eos": True}
    if kind.startswith("chat"):
        asked["messages"] = [{"role": "user", "content": about}]
    else:
        asked["prompt"] = about
    if kind.endswith("stream"):
        asked["stream"] = True
        if number % 4:
            asked["stream_options"] = {"include_usage": True}
    return kind, asked


async def ask(client: openai.AsyncOpenAI, number: int, model: str) -> dict:
    kind, asked = arguments(number, model)
    found = {"number": number, "kind": kind, "text": "", "finish": None, "tokens": None, "stall": 0.0, "error": None}
    is_chat = kind.startswith("chat")
    create = client.chat.completions.create if is_chat else client.completions.create
    try:
        answer = await create(**asked)
        if "stream" not in asked:
            choice = answer.choices[0]
            found["text"] = choice.message.content if is_chat else choice.text
            found["finish"], found["tokens"] = choice.finish_reason, answer.usage.completion_tokens
            return found
        last = None
        async for chunk in answer:
            now = time.monotonic()
            found["stall"] = max(found["stall"], now - (last or now))
            last = now
            if chunk.usage:
                found["tokens"] = chunk.usage.completion_tokens
            for choice in chunk.choices:
                found["text"] += (choice.delta.content if is_chat else choice.text) or ""
                found["finish"] = choice.finish_reason or found["finish"]
    except Exception as error:  # whatever a user would see
        found["error"] = f"{type(error).__name__}: {error}"
    return found


async def main(base_url: str, model: str, clients: int, count: int, enough: str) -> None:
    numbers = itertools.count()

    async def one(client: openai.AsyncOpenAI) -> None:
        for number in numbers:
            if number >= count and os.path.exists(enough):
                return
            print(json.dumps(await ask(client, number % count, model)), flush=True)

    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]))
