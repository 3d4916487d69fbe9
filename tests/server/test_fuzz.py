"""Every route under requests drawn from its own schema, valid and not: no 5xx, and an answer in time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from fastkernels.engine.config import EngineConfig
from fastkernels.server.app import build_app
from fastkernels.server.local import LocalServer, running_server
from fastkernels.server.service import ServerConfig, Service

PATHS = build_app(Service(EngineConfig("tiny-llama", device="fake"), ServerConfig())).openapi()["paths"]
ROUTES = [(path, method.upper()) for path, methods in PATHS.items() for method in methods]
OFTEN_REFUSED = {"allowed_token_ids", "bad_words", "best_of", "logit_bias", "logprobs", "prompt_logprobs"}
OFTEN_REFUSED |= {"response_format", "stop", "stream_options", "structured_outputs", "suffix"}
"""Fields of which most that the schema allows is refused: by what another field says, or since a fake device has no
logits. Half of the drawn requests do without them, so that some are served."""
OF_OTHER_MODELS = {"/v1/images/generations", "/v1/audio/transcriptions"}


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[LocalServer]:
    with running_server("tiny-llama", "--device", "fake", "--max-num-waiting", "64") as running:
        yield running
        assert running.process.poll() is None
        assert '"outcome": "failed"' not in running.log


@pytest.fixture(scope="module")
def schema(fuzzed: LocalServer) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")


def test_every_route_is_fuzzed() -> None:
    assert len(ROUTES) == 15
    assert {"/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/abort"} <= {path for path, _ in ROUTES}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_no_route_answers_with_a_server_error(
    schema: schemathesis.BaseSchema, path: str, method: str, mode: GenerationMode
) -> None:
    takes_input = method == "POST" or "{" in path
    if mode is GenerationMode.NEGATIVE and method != "POST":
        pytest.skip("takes no input that could be wrong")
    statuses = set()
    strategy = schema[path][method].as_strategy(generation_mode=mode)

    @settings(
        max_examples=30 if takes_input else 3,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        case = data.draw(strategy)
        if isinstance(case.body, dict):
            case.body.pop("model", None)  # no other is served, and that would be the end of it
            if mode is GenerationMode.POSITIVE and data.draw(st.booleans()):
                case.body = {name: value for name, value in case.body.items() if name not in OFTEN_REFUSED}
                case.body |= {"prompt": "Once"} if "prompt" in case.body else {}
        response = case.call(timeout=10)
        case.validate_response(response, checks=[not_a_server_error])
        if response.status_code >= 400:
            assert response.json()["error"]["message"]
        statuses.add(response.status_code)

    fuzz()
    if path in OF_OTHER_MODELS:
        assert statuses == {400}
    elif takes_input and "{" not in path:
        assert (200 if mode is GenerationMode.POSITIVE else 400) in statuses
