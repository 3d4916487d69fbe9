"""Stream a chat answer with the official openai client: `python examples/client.py [URL]`; else from its own server."""

from __future__ import annotations

import contextlib
import sys
import time

from openai import OpenAI

from fastkernels.server.local import running_server

QUESTION = "Which kernels does a decoder layer launch?"


def chat(url: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id
    print(f"{model} at {url}\nuser: {QUESTION}\nassistant: ", end="")
    start, first, chunks, usage = time.perf_counter(), None, 0, None
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=48,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        usage = chunk.usage or usage
        if text := "".join(choice.delta.content or "" for choice in chunk.choices):
            first, chunks = first or time.perf_counter(), chunks + 1
            print(ascii(text)[1:-1], end="|", flush=True)
    seconds = time.perf_counter() - start
    assert first is not None
    print(f"\n{usage}\n{chunks} chunks, the first after {1e3 * (first - start):.0f} ms of {1e3 * seconds:.0f} ms")


if __name__ == "__main__":
    with running_server() if len(sys.argv) == 1 else contextlib.nullcontext() as server:
        chat(sys.argv[1] if server is None else server.url)
