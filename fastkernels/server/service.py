"""What every route needs: the engine, the models' names, the chat template, and whether requests are taken."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from fastkernels.engine.chat import ChatTemplate, find_chat_template
from fastkernels.engine.client import AsyncEngine
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.multimodal import Processor, find_processor
from fastkernels.engine.outputs import EMBEDDING, EngineInfo
from fastkernels.errors import UsageError
from fastkernels.server.errors import ApiError, check_unicode
from fastkernels.server.fetch import Fetcher
from fastkernels.server.in_flight import InFlight
from fastkernels.server.metrics import Metrics

_ROUTES = {
    "tokens": "/v1/completions",
    "image/png": "/v1/images/generations",
    EMBEDDING: "/v1/embeddings",
    "audio": "/v1/audio/transcriptions",
}
"""By what a model makes, and of one that answers nothing without it, by what it takes."""


@dataclass(frozen=True)
class ServerConfig:
    """Where the server listens and whom it serves. allowed_origins: for browsers; none are unless named.

    shutdown_timeout: seconds that running requests get after SIGTERM. max_body_bytes: larger bodies are refused.
    allowed_local_media_path: a folder whose files requests may name by file: URLs; without it they may name none.
    allowed_media_domains: hosts that media are fetched from; without any every one of the open internet.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    served_model_names: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    chat_template: Path | None = None
    shutdown_timeout: float = 30.0
    max_body_bytes: int = 8 * 2**20
    allowed_local_media_path: Path | None = None
    allowed_media_domains: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise UsageError(f"port is {self.port}; it must be in [0, 65535] (0 is any free one).")
        if self.shutdown_timeout < 0 or self.max_body_bytes < 1:
            raise UsageError("shutdown_timeout is at least 0 and max_body_bytes at least 1.")
        if self.api_key is not None and not self.api_key:
            raise UsageError("The API key is empty; leave it out to serve without one.")
        if self.allowed_local_media_path is not None and not self.allowed_local_media_path.is_dir():
            raise UsageError(f"allowed_local_media_path {self.allowed_local_media_path} is no folder.")
        for domain in self.allowed_media_domains:
            if not domain or set(domain) & set("/:@ "):
                raise UsageError(f"allowed_media_domain {domain!r} is no host's name; say it as example.org.")


class Phase(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


class Service:
    """One server's state."""

    def __init__(self, engine_config: EngineConfig, config: ServerConfig) -> None:
        self.engine_config, self.config = engine_config, config
        self.metrics = Metrics()
        self.fetcher = Fetcher(config.allowed_media_domains)
        self.phase = Phase.LOADING
        self.in_flight = InFlight()
        self.template: ChatTemplate = find_chat_template(
            engine_config.tokenizer or engine_config.model, config.chat_template
        )
        self.routes: frozenset[str] = frozenset()
        self.longest_token = 1  # bytes: no prompt that fits is longer than max_model_len of them
        self.processor: Processor | None = None
        self._engine: AsyncEngine | None = None
        path = Path(engine_config.model)
        name = path.resolve().name if path.is_dir() else path.stem if path.is_file() else engine_config.model
        self.model_names = config.served_model_names or (name,)

    async def start(self) -> AsyncEngine:
        """Errors: EngineStartError; those of the files that pictures and sounds are prepared by."""
        engine = await AsyncEngine.start(self.engine_config, self.metrics)
        try:
            self.longest_token = max((len(token.encode()) for token in engine.tokenizer.get_vocab()), default=1)
            if engine.info.takes_media:
                self.processor = await asyncio.to_thread(find_processor, self.engine_config.model, engine.tokenizer)
        except BaseException:
            await engine.close()
            raise
        self._engine = engine
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY
        return self._engine

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.close()

    @property
    def is_ending(self) -> bool:
        return self.phase in (Phase.DRAINING, Phase.DEAD)

    @property
    def started_engine(self) -> AsyncEngine | None:
        return self._engine

    @property
    def engine(self) -> AsyncEngine:
        """Errors: ApiError 503 while it loads and when it is gone."""
        if self._engine is None:
            raise ApiError(503, "The model is being loaded; ask /ready.", code="loading", retry_after=1)
        return self._engine

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    def engine_for(self, model: str | None, makes: str = "tokens", takes: str = "text") -> AsyncEngine:
        """The engine for a new request. Errors: ApiError for another model, another kind, or when none is taken."""
        self.check_model(model)
        self.check_makes(makes)
        self._check_takes(takes)
        if self.phase is Phase.DRAINING:
            raise ApiError(
                503, "The server is shutting down; it takes no new requests.", code="draining", retry_after=1
            )
        return self.engine

    def makes(self, wanted: str) -> bool:
        return self._engine is not None and self._engine.info.makes == wanted

    def check_makes(self, wanted: str) -> None:
        """Errors: ApiError when the model makes something else."""
        makes = self.info.makes
        if makes != wanted:
            route = _ROUTES.get(makes)
            hint = f"Use POST {route}." if route else "Use it offline: fastkernels generate."
            raise ApiError(
                400, f"{self.model_names[0]} makes {makes}, not {wanted}. {hint}", code="wrong_kind_of_model"
            )

    def _check_takes(self, wanted: str) -> None:
        """wanted: "text" alone, or a modality. Errors: ApiError when the model does not take it."""
        modalities = () if self.processor is None else self.processor.modalities
        if wanted != "text" and wanted not in modalities:
            raise ApiError(400, f"{self.model_names[0]} takes no {wanted}.", code="wrong_kind_of_model")
        if wanted == "text" and self.processor is not None and self.processor.needs_media:
            what = modalities[0]
            message = f"{self.model_names[0]} answers nothing without {what}. Use POST {_ROUTES[what]}."
            raise ApiError(400, message, code="wrong_kind_of_model")

    def check_model(self, model: str | None) -> None:
        if model is not None and model not in self.model_names:
            names = ", ".join(self.model_names)
            raise ApiError(404, f"There is no model {model[:200]!r} here; served: {names}.", "model", "model_not_found")

    async def encode(self, text: str, param: str, add_special_tokens: bool = True) -> list[int]:
        """Errors: as `encode_all`."""
        return (await self.encode_all([text], param, add_special_tokens))[0]

    async def encode_all(self, texts: Sequence[str], param: str, add_special_tokens: bool = True) -> list[list[int]]:
        """Errors: ApiError when a text is not Unicode, or longer than the model can hold."""
        for text in texts:
            self.check_text(text, param)
        return await self.engine.encode_all(texts, add_special_tokens)

    def check_count(self, many: Sequence[object], param: str) -> None:
        """Before any is looked at. Errors: ApiError for more prompts than may wait."""
        limit = self.engine.config.max_num_waiting
        if len(many) > limit:
            message = (
                f"{param} holds {len(many)} prompts; at most {limit} are taken (max_num_waiting). Send fewer at once."
            )
            raise ApiError(400, message, param)

    def check_text(self, text: str, param: str) -> None:
        """Errors: ApiError when it is not Unicode, or longer than the model can hold."""
        check_unicode(text, param)
        num_bytes = len(text.encode())
        most = self.info.max_model_len * self.longest_token
        if num_bytes > most:
            raise ApiError(400, f"{param} has {num_bytes} bytes; max_model_len tokens hold {most} at most.", param)

    def check_placeholders(self, tokens: Sequence[int], param: str) -> None:
        """Errors: ApiError for a prompt that stands for pictures which did not come with it."""
        if self.processor is not None:
            try:
                self.processor(tokens, {})
            except UsageError as error:
                raise ApiError(400, f"{param}: {error}", param) from error

    def check_tokens(self, tokens: Sequence[int], param: str) -> None:
        size = self.info.vocab_size
        if tokens and (min(tokens) < 0 or max(tokens) >= size):
            off = next(t for t in tokens if not 0 <= t < size)
            raise ApiError(400, f"{param} holds token id {off}; it must be in [0, {size}).", param)

    def max_tokens(self, wanted: int | None, default: int | None, prompt_len: int, param: str) -> int:
        """New tokens to make at most. Errors: ApiError when fewer fit than are wanted."""
        room = self.room(prompt_len, param)
        if wanted is None:
            return room if default is None else min(room, default)
        if wanted > room:
            message = (
                f"max_tokens is {wanted}; {param} has {prompt_len} tokens and max_model_len is "
                f"{self.info.max_model_len}: at most {room} fit."
            )
            raise ApiError(400, message, "max_tokens", "context_length_exceeded")
        return wanted

    def room(self, prompt_len: int, param: str) -> int:
        """New tokens that fit behind a prompt. Errors: ApiError when none does."""
        info = self.info
        most = min(info.max_model_len, info.num_pages * info.page_size) if info.num_pages else info.max_model_len
        if prompt_len == 0:
            raise ApiError(400, f"{param} is empty; at least 1 token is needed.", param)
        if prompt_len >= most:
            what = f"max_model_len is {info.max_model_len}"
            if most < info.max_model_len:
                what += f" and the KV cache holds {most}"
            message = f"{param} has {prompt_len} tokens; {what}: at most {most - 1} leave room for an answer."
            raise ApiError(400, message, param, "context_length_exceeded")
        return most - prompt_len

    async def metrics_text(self) -> bytes:
        """A busy engine answers between two steps; what it said last stands in for it when that takes long."""
        engine, stats = self._engine, None
        if engine is not None and engine.is_alive:
            try:
                stats = await asyncio.wait_for(engine.stats(), 1.0)
            except TimeoutError:
                stats = None
        return self.metrics.render(engine.info if engine is not None else None, stats)
