"""Pictures, videos and recordings that a request names: where they may come from, and what the processor makes of those
of its messages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

from fastkernels.engine.multimodal import ProcessedPrompt
from fastkernels.errors import UnsupportedError, UsageError
from fastkernels.pipelines.media import MAX_BYTES, read_bytes
from fastkernels.server.errors import ApiError, check_unicode
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
        message = f"messages hold {len(wanted)} pictures, videos and recordings; the most is {MAX_ITEMS}."
        raise ApiError(400, message, "messages")
    service.check_text(text, "messages")
    for _, url in wanted:
        check_url(service, url, "messages")
    processor = service.processor
    assert processor is not None

    def run(found: Sequence[str | bytes]) -> ProcessedPrompt:
        data: dict[str, list[bytes]] = {}
        contents: list[bytes] = []
        for (modality, _), source in zip(wanted, found, strict=True):
            contents.append(read_bytes(source, modality))
            _check_sum(contents, len(wanted))
            data.setdefault(modality, []).append(contents[-1])
        return processor(text, data, add_special_tokens=False)

    try:
        async with sources(service, wanted) as found:
            return await asyncio.to_thread(run, found)
    except (UsageError, UnsupportedError) as error:
        raise ApiError(400, f"messages: {error}", "messages") from error


@contextlib.asynccontextmanager
async def sources(service: Service, wanted: Sequence[tuple[str, str]]) -> AsyncIterator[list[str | bytes]]:
    """The files behind http and https as they are, the other URLs: who decodes one at a time needs no more of each.

    wanted: a modality, and a URL that check_url took. A turn of the fetcher is held until the block ends.
    Errors: UsageError when one cannot be fetched, or all are too large together.
    """
    is_fetching = any(_is_remote(url) for _, url in wanted)
    async with service.fetcher.turns if is_fetching else contextlib.nullcontext():
        yield await _fetched(service.fetcher, wanted)


def check_url(service: Service, url: str, param: str) -> None:
    """Errors: ApiError for a URL that names a file of this machine, or nothing that can be fetched."""
    folder = service.config.allowed_local_media_path
    check_unicode(url, param)
    try:
        parsed = urlparse(url)
    except ValueError as error:
        raise ApiError(400, f"{_shown(url)} is no URL: {error}.", param) from error
    if parsed.scheme == "file":
        path = Path(unquote(parsed.path))
        if folder is None or parsed.netloc not in ("", "localhost") or not _is_inside(path, folder):
            which = "none" if folder is None else f"only those below {folder}"
            raise ApiError(400, f"{_shown(url)} may not be read: of this machine's files {which} may be named.", param)
    elif parsed.scheme not in _SCHEMES:
        raise ApiError(400, f"{_shown(url)} is no http, https or data URL.", param)


def _is_inside(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):  # a null byte, a loop of links
        return False


async def _fetched(fetcher: Fetcher, wanted: Sequence[tuple[str, str]]) -> list[str | bytes]:
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
            f"{len(contents)} of {num_wanted} files have {num_bytes} bytes together; the most of a request is "
            f"{MAX_SUM_BYTES}. Send fewer, or smaller ones."
        )


def _is_remote(url: str) -> bool:
    return urlparse(url).scheme in ("http", "https")


def _shown(url: str) -> str:
    return repr(url if len(url) <= 80 else f"{url[:80]}...")
