"""Servers on the fake device, shared by the tests that only ask."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from fastkernels.server.local import LocalServer, running_server

LONG_MODEL_LEN = 200_000

# 5 seconds of silence are httpx's limit, and less than a tiny model takes now and then where cores are shared.
inspect.signature(httpx.post).parameters["timeout"].default.read = 60


@pytest.fixture(scope="session")
def long_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-llama with room for answers that outlast a test."""
    preset = files("fastkernels.engine").joinpath("presets", "tiny-llama.json").read_text()
    path = tmp_path_factory.mktemp("config") / "long-llama.json"
    path.write_text(json.dumps(json.loads(preset) | {"max_position_embeddings": LONG_MODEL_LEN}))
    return path


@pytest.fixture(scope="session")
def server() -> Iterator[LocalServer]:
    with running_server("tiny-llama", "--device", "fake") as running:
        yield running


@pytest.fixture(scope="session")
def long_server(long_config: Path) -> Iterator[LocalServer]:
    with running_server(str(long_config), "--device", "fake", "--num-pages", "40000") as running:
        yield running


@pytest.fixture(scope="session")
def client(server: LocalServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as openai_client:
        yield openai_client
