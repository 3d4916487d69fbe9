"""POST /v1/embeddings of a model that makes embeddings: with the openai client, its limits, and the other routes."""

from __future__ import annotations

import base64
import concurrent.futures
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI

from fastkernels.engine.pipeline import Pipeline
from fastkernels.server.local import LocalServer, running_server
from fastkernels.workloads import prompts

MODEL = "tiny-bge_m3"
TEXTS = [text[: 7 + 60 * i] for i, text in enumerate(list(prompts())[:6])]


@pytest.fixture(scope="module")
def embedder() -> Iterator[LocalServer]:
    with running_server(MODEL, "--device", "cpu") as running:
        yield running


@pytest.fixture(scope="module")
def texts_client(embedder: LocalServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{embedder.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def expected() -> list[np.ndarray]:
    results = Pipeline(MODEL, device="cpu").run([{"text": text} for text in TEXTS])
    return [result.tensors["dense_vecs"].numpy() for result in results]


def test_embeddings_are_the_models_dense_vectors(texts_client: OpenAI, expected: list[np.ndarray]) -> None:
    answer = texts_client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    assert [one.index for one in answer.data] == list(range(len(TEXTS)))
    for one, wanted in zip(answer.data, expected, strict=True):
        assert np.allclose(one.embedding, wanted, rtol=1e-4, atol=1e-6)
    num_tokens = sum(r.num_tokens for r in Pipeline(MODEL, device="cpu").run([{"text": text} for text in TEXTS]))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == num_tokens


def test_many_clients_at_once_get_their_own(texts_client: OpenAI, expected: list[np.ndarray]) -> None:
    def ask(i: int) -> list[float]:
        return texts_client.embeddings.create(model=MODEL, input=TEXTS[i]).data[0].embedding  # base64 on the wire

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, [i % len(TEXTS) for i in range(24)]))
    for i, vector in enumerate(found):
        assert np.allclose(vector, expected[i % len(TEXTS)], rtol=1e-4, atol=1e-6)


def test_token_ids_and_base64_are_taken(texts_client: OpenAI) -> None:
    ids = [512, 40, 41, 513]
    flat = texts_client.embeddings.create(model=MODEL, input=ids, encoding_format="float").data[0].embedding
    several = texts_client.embeddings.create(model=MODEL, input=[ids, [7]], encoding_format="base64")
    raw = str(several.data[0].embedding)
    assert np.allclose(np.frombuffer(base64.b64decode(raw), "<f4"), flat, rtol=1e-4, atol=1e-6)
    assert several.usage.prompt_tokens == 5


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "input is empty; at least 1 token is needed."),
        ([[1], []], "input is empty; at least 1 token is needed."),
        ([600], "input is a list of token ids in [0, 514), at least one; got 600 to 600."),
        ("word " * 2000, "The text has "),
    ],
    ids=["empty", "one-empty", "beyond", "long"],
)
def test_an_input_that_is_off_is_told_by_the_clients_name(texts_client: OpenAI, given: Any, says: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        texts_client.embeddings.create(model=MODEL, input=given)
    assert refused.value.param == "input"
    assert refused.value.body["message"].startswith(says)  # type: ignore[index]


def test_too_long_texts_and_other_routes_are_refused(texts_client: OpenAI, embedder: LocalServer) -> None:
    with pytest.raises(openai.BadRequestError, match=r"the model takes 1024\. Nothing is cut off"):
        texts_client.embeddings.create(model=MODEL, input=["fine", "word " * 2000])
    with pytest.raises(openai.BadRequestError, match=r"token ids in \[0, 514\)"):
        texts_client.embeddings.create(model=MODEL, input=[600])
    with pytest.raises(openai.BadRequestError, match="input holds 5000 prompts; at most 4096 are taken"):
        texts_client.embeddings.create(model=MODEL, input=["a"] * 5000)
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        texts_client.embeddings.create(model="other", input="a")
    with pytest.raises(openai.BadRequestError, match="Use POST /v1/embeddings"):
        texts_client.completions.create(model=MODEL, prompt="a")
    assert texts_client.embeddings.create(model=MODEL, input="still here").data[0].embedding
