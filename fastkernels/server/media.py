"""Pictures and videos of a request's messages: where they may come from, and what the processor makes of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

from fastkernels.engine.multimodal import ProcessedPrompt
from fastkernels.errors import UnsupportedError, UsageError
from fastkernels.pipelines.media import MAX_BYTES, read_bytes
from fastkernels.server.errors import ApiError
from fastkernels.server.fetch import MOST_SECONDS, Fetcher
from fastkernels.server.protocol import Message
from fastkernels.server.service import Service

_SCHEMES = ("http", "https", "data")
MAX_ITEMS = 64
"""Of one request: each is fetched and decoded before the engine sees any."""

MAX_SUM_BYTES = 256 << 20
"""Of the files of one request: all are held while they are decoded, one after the other."""


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

    def run(sources: Sequence[str | bytes]) -> ProcessedPrompt:
        data: dict[str, list[bytes]] = {}
        contents: list[bytes] = []
        for (modality, _), source in zip(wanted, sources, strict=True):
            contents.append(read_bytes(source, modality))
            _check_sum(contents, len(wanted))
            data.setdefault(modality, []).append(contents[-1])
        return processor(text, data, add_special_tokens=False)

    is_fetching = any(_is_remote(url) for _, url in wanted)
    try:
        async with service.fetcher.turns if is_fetching else contextlib.nullcontext():
            return await asyncio.to_thread(run, await _fetched(service.fetcher, wanted))
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


async def _fetched(fetcher: Fetcher, wanted: Sequence[tuple[str, str]]) -> list[str | bytes]:
    """The files behind http and https as they are, the other URLs: the processor decodes one at a time, and no more
    of each than it needs."""
    end = asyncio.get_running_loop().time() + MOST_SECONDS
    sources: list[str | bytes] = []
    for what, url in wanted:
        sources.append(await fetcher.fetch(url, what, MAX_BYTES, end) if _is_remote(url) else url)
        _check_sum([one for one in sources if isinstance(one, bytes)], len(wanted))
    return sources


def _check_sum(contents: Sequence[bytes], num_wanted: int) -> None:
    num_bytes = sum(map(len, contents))
    if num_bytes > MAX_SUM_BYTES:
        raise UsageError(
            f"{len(contents)} of {num_wanted} pictures and videos have {num_bytes} bytes together; the most of a "
            f"request is {MAX_SUM_BYTES}. Send fewer, or smaller ones."
        )


def _is_remote(url: str) -> bool:
    return urlparse(url).scheme in ("http", "https")


def _shown(url: str) -> str:
    return repr(url if len(url) <= 80 else f"{url[:80]}...")
