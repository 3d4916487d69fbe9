"""Pictures and videos of a request's messages: where they may come from, and what the processor makes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

from fastkernels.engine.multimodal import ProcessedPrompt
from fastkernels.errors import UnsupportedError, UsageError
from fastkernels.server.errors import ApiError
from fastkernels.server.protocol import Message
from fastkernels.server.service import Service

_SCHEMES = ("http", "https", "data")
MAX_ITEMS = 64
"""Of one request: each is fetched and decoded before the engine sees any."""


async def process(service: Service, messages: Sequence[Message], text: str) -> ProcessedPrompt:
    """The prompt `text` with the media of `messages` in order. Errors: ApiError 400 says which cannot be used."""
    wanted = [one for message in messages for one in message.media()]
    if len(wanted) > MAX_ITEMS:
        raise ApiError(400, f"messages hold {len(wanted)} pictures and videos; the most is {MAX_ITEMS}.", "messages")
    service.check_text(text, "messages")
    folder = service.config.allowed_local_media_path
    for _, url in wanted:
        _check(url, folder)
    processor = service.processor
    assert processor is not None

    def run() -> ProcessedPrompt:
        data: dict[str, list[bytes]] = {}
        for modality, url in wanted:
            data.setdefault(modality, []).append(_load(service, modality, url))
        return processor(text, data, add_special_tokens=False)

    try:
        return await asyncio.to_thread(run)
    except (UsageError, UnsupportedError) as error:
        raise ApiError(400, f"messages: {error}", "messages") from error


def _check(url: str, folder: Path | None) -> None:
    """A URL that names a file of this machine, or nothing that can be fetched, is refused."""
    try:
        parsed = urlparse(url)
    except ValueError as error:
        raise ApiError(400, f"{_shown(url)} is no URL: {error}.", "messages") from error
    if parsed.scheme == "file":
        path = Path(unquote(parsed.path))
        if folder is None or parsed.netloc not in ("", "localhost") or not _is_inside(path, folder):
            where = "there is none" if folder is None else f"only below {folder}"
            raise ApiError(
                400, f"{_shown(url)} may not be read: files of this machine are given out {where}.", "messages"
            )
    elif parsed.scheme not in _SCHEMES:
        raise ApiError(400, f"{_shown(url)} is no http, https or data URL.", "messages")


def _is_inside(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):  # a null byte, a loop of links
        return False


def _load(service: Service, modality: str, url: str) -> bytes:
    """The file as it is: the processor decodes one at a time, and no more of each than it needs."""
    from fastkernels.pipelines.media import MAX_BYTES, read_bytes

    is_remote = urlparse(url).scheme in ("http", "https")
    return read_bytes(service.fetcher.fetch(url, modality, MAX_BYTES) if is_remote else url, modality)


def _shown(url: str) -> str:
    return repr(url if len(url) <= 80 else f"{url[:80]}...")
