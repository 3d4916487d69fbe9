"""Pictures over HTTP: a model that makes no tokens behind the same server."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from PIL import Image
from waiting import gauges, wait_until

from fastkernels.engine.pipeline import Pipeline
from fastkernels.server.local import LocalServer, running_server

MODEL = "tiny-sdxl"


@pytest.fixture(scope="module")
def images() -> Iterator[LocalServer]:
    with running_server(MODEL, "--device", "cpu") as running:
        yield running


@pytest.fixture(scope="module")
def painter(images: LocalServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{images.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def picture(data: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data.b64_json)))


def generate(client: OpenAI, prompt: str = "a cat", steps: int = 2, **given: Any) -> Any:
    extra = {"num_inference_steps": steps} | given.pop("extra", {})
    return client.images.generate(model=MODEL, prompt=prompt, extra_body=extra, **given)


def test_picture_has_its_size_and_is_the_one_that_the_pipeline_makes(painter: OpenAI) -> None:
    (answer,) = generate(painter, size="72x40", response_format="b64_json", extra={"seed": 5}).data
    shown = picture(answer)
    assert shown.size == (72, 40)
    request = {"prompt": "a cat", "steps": 2, "width": 72, "height": 40, "seed": 5}
    [offline] = Pipeline(MODEL, device="cpu").run([request])
    assert shown.tobytes() == offline.image.tobytes()


def test_pictures_of_one_request_follow_its_seed(painter: OpenAI) -> None:
    several = generate(painter, n=3, size="64x64", extra={"seed": 7})
    assert [one.model_extra["seed"] for one in several.data] == [7, 8, 9]
    assert len({picture(one).tobytes() for one in several.data}) == 3
    (alone,) = generate(painter, size="64x64", extra={"seed": 8}).data
    difference = [abs(a - b) for a, b in zip(picture(alone).tobytes(), picture(several.data[1]).tobytes(), strict=True)]
    assert max(difference) <= 1  # of 255: sums in a batch are in another order


def test_requests_at_unlike_steps_share_batches(images: LocalServer, painter: OpenAI) -> None:
    before = gauges(images.url)["steps_total"]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(generate, painter, f"scene {i}", 30 + i, extra={"seed": i}) for i in range(8)]
        answers = [one.result() for one in asked]
    assert all(picture(answer.data[0]).size == (64, 64) for answer in answers)
    assert gauges(images.url)["steps_total"] - before < 0.7 * sum(range(30, 38))


@pytest.mark.parametrize(
    ("given", "param", "said"),
    [
        ({"size": "65x64"}, "size", "size is '65x64': width is 65; it is a multiple of 8"),
        ({"size": "64x99999"}, "size", "size is '64x99999': height is 99999; it is a multiple of 8"),
        ({"size": "big"}, "size", "size is 'big'"),
        ({"n": 11}, "n", "n is 11"),
        ({"response_format": "url"}, "response_format", "keeps no files"),
        ({"extra": {"num_inference_steps": 1001}}, "num_inference_steps", "^num_inference_steps is 1001; .* 1000"),
        ({"extra": {"guidance_scale": "much"}}, "guidance_scale", "guidance_scale"),
        ({"extra": {"seed": -1}}, "seed", "seed"),
        ({"size": "99992x99992"}, "size", "size is '99992x99992': 99992 x 99992 are more than 16777216 pixels"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_refused_by_the_name_of_its_field(
    painter: OpenAI, given: dict[str, Any], param: str, said: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        generate(painter, **given)
    assert refused.value.param == param
    assert re.search(said, refused.value.body["message"])  # type: ignore[index]


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_text_that_is_no_unicode_is_refused(images: LocalServer, field: str) -> None:
    body = {"prompt": "a cat", "num_inference_steps": 1, field: "a \ud800"}
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{images.url}/v1/images/generations", content=json.dumps(body), headers=headers)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["message"]) == (field, f"{field} holds a lone surrogate at 2; it is no Unicode text.")


def test_routes_of_tokens_are_refused_by_a_model_of_pictures(images: LocalServer, painter: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="makes image/png, not tokens"):
        painter.completions.create(model=MODEL, prompt="x")
    with pytest.raises(openai.BadRequestError, match="images/generations"):
        painter.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError, match="not tokens"):
        painter.embeddings.create(model=MODEL, input="x")
    assert httpx.post(f"{images.url}/tokenize", json={"prompt": "x"}).status_code == 400
    assert painter.models.retrieve(MODEL).id == MODEL
    ops = {line["op"] for line in httpx.get(f"{images.url}/v1/kernels").json()["data"]}
    assert {"unet2d_condition_model", "group_norm", "autoencoder_kl"} <= ops


def test_pictures_are_refused_by_a_model_of_tokens(server: LocalServer, client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="makes tokens, not image/png"):
        client.images.generate(model="tiny-llama", prompt="a cat")


def test_request_whose_client_leaves_is_dropped(images: LocalServer) -> None:
    body = {"prompt": "a cat", "num_inference_steps": 1000, "size": "128x128"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{images.url}/v1/images/generations", json=body, timeout=0.5)
    wait_until(lambda: gauges(images.url)["num_requests_running"] == 0)


def test_abort_ends_a_request_by_its_id(images: LocalServer) -> None:
    body = {"prompt": "a cat", "num_inference_steps": 1000, "size": "128x128"}
    url = f"{images.url}/v1/images/generations"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, url, json=body, headers={"X-Request-Id": "mine"}, timeout=60)
        wait_until(lambda: httpx.post(f"{images.url}/abort", json={"request_id": "img-mine"}).json()["aborted"] != [])
        answer = asked.result()
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "aborted"


def test_server_told_to_stop_finishes_its_pictures() -> None:
    with running_server(MODEL, "--device", "cpu") as running, concurrent.futures.ThreadPoolExecutor(1) as pool:
        body = {"prompt": "a cat", "num_inference_steps": 60}
        asked = pool.submit(httpx.post, f"{running.url}/v1/images/generations", json=body, timeout=60)
        wait_until(lambda: gauges(running.url)["num_requests_running"] == 1)
        running.process.terminate()
        assert asked.result().status_code == 200
        assert running.process.wait(20) == 0
        assert '"drained"' in running.log
