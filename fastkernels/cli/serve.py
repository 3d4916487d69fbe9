"""`fastkernels serve`: an OpenAI-compatible server."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

from typer import Option

from fastkernels import env
from fastkernels.cli.common import console
from fastkernels.cli.engine_options import takes_engine_config
from fastkernels.engine.config import EngineConfig
from fastkernels.errors import EnvironmentProblem


@takes_engine_config
def serve(
    engine_config: EngineConfig,
    *,
    host: Annotated[str, Option(help="The address to listen on; 0.0.0.0 is every one of this machine.")] = "127.0.0.1",
    port: Annotated[int, Option(help="0 is any free one.")] = 8000,
    api_key: Annotated[
        str | None, Option(help="Clients must send it. Better in FASTKERNELS_API_KEY: others see a command's words.")
    ] = None,
    served_model_name: Annotated[list[str] | None, Option(help="What clients call the model; may be repeated.")] = None,
    allowed_origin: Annotated[
        list[str] | None, Option(help="A web page's origin that may call (CORS); repeated.")
    ] = None,
    chat_template: Annotated[Path | None, Option(help="A Jinja file, instead of the checkpoint's.")] = None,
    shutdown_timeout: Annotated[float, Option(help="Seconds that running requests get after SIGTERM.")] = 30.0,
    max_body_bytes: Annotated[int, Option(help="Larger requests are refused.")] = 8 * 2**20,
    allowed_local_media_path: Annotated[
        Path | None, Option(help="A folder whose pictures, videos and recordings requests may name by file: URLs.")
    ] = None,
    allowed_media_domain: Annotated[
        list[str] | None,
        Option(help="A host that media are fetched from, repeated; the open internet when left out."),
    ] = None,
) -> None:
    """Serve a model over HTTP, as OpenAI's API."""
    try:
        from fastkernels.server.lifecycle import serve as run
        from fastkernels.server.service import ServerConfig
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(f"{error.name} is not installed: pip install 'fastkernels[server]'.") from error
    config = ServerConfig(
        host=host,
        port=port,
        api_key=env.api_key() if api_key is None else api_key,
        served_model_names=tuple(served_model_name or ()),
        allowed_origins=tuple(allowed_origin or ()),
        chat_template=chat_template,
        shutdown_timeout=shutdown_timeout,
        max_body_bytes=max_body_bytes,
        allowed_local_media_path=allowed_local_media_path,
        allowed_media_domains=tuple(allowed_media_domain or ()),
    )
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("fastkernels.server").setLevel(logging.INFO)
    run(engine_config, config, lambda url: console.print(f"Serving {engine_config.model} at {url}", soft_wrap=True))
