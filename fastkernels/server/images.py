"""POST /v1/images/generations."""

from __future__ import annotations

import base64
import re
import secrets
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from fastkernels.engine.task_client import AsyncTaskEngine
from fastkernels.server.errors import ApiError, check_unicode, json_response
from fastkernels.server.generation import request_id_of
from fastkernels.server.protocol import ImageBody
from fastkernels.server.tasks import run_all

_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_MOST_IMAGES = 10
_SEEDS = 1 << 31


def inputs_of(body: ImageBody) -> list[dict[str, Any]]:
    """One request of the model for each picture; their seeds follow each other.

    Errors: ApiError names the field.
    """
    num = 1 if body.n is None else body.n
    if not 1 <= num <= _MOST_IMAGES:
        raise ApiError(400, f"n is {num}; it must be in [1, {_MOST_IMAGES}].", "n")
    if body.response_format == "url":
        raise ApiError(
            400, "response_format is 'url'; this server keeps no files: ask for 'b64_json'.", "response_format"
        )
    for name in ("prompt", "negative_prompt"):
        check_unicode(getattr(body, name) or "", name)
    given: dict[str, Any] = {"prompt": body.prompt}
    if body.size not in (None, "auto"):
        size = _SIZE.fullmatch(body.size)
        if size is None:
            raise ApiError(400, f"size is {body.size[:60]!r}; it is WIDTHxHEIGHT, such as 1024x1024.", "size")
        given |= {"width": int(size[1]), "height": int(size[2])}
    extras = {
        "negative_prompt": body.negative_prompt,
        "guidance_scale": body.guidance_scale,
        "steps": body.num_inference_steps,
    }
    given |= {name: value for name, value in extras.items() if value is not None}
    seed = secrets.randbelow(_SEEDS) if body.seed is None else body.seed
    return [{**given, "seed": seed + i} for i in range(num)]


async def respond(request: Request, engine: AsyncTaskEngine, body: ImageBody) -> Response:
    """All pictures."""

    def refusal(message: str) -> ApiError:
        """The model knows no `size` and calls num_inference_steps otherwise."""
        name, _, rest = message.partition(" ")
        if name == "steps":
            return ApiError(400, f"num_inference_steps {rest}", "num_inference_steps")
        if name in ("height", "width") or message.endswith("pixels."):
            return ApiError(400, f"size is {body.size!r}: {message}", "size")
        return ApiError(400, message, name if name in ImageBody.model_fields else None)

    results = await run_all(request, engine, inputs_of(body), request_id_of(request, "img"), refusal)
    data = [
        {"b64_json": base64.b64encode(result.content).decode(), "seed": result.summary.get("seed")}
        for result in results
    ]
    return json_response({"created": int(time.time()), "data": data})
