"""Pictures, sounds and videos as users give them: a path, a URL, a data URI, base64, bytes, or what a library read."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import unquote_to_bytes, urlparse
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image, UnidentifiedImageError

from fastkernels.errors import UsageError

MAX_BYTES = 64 << 20
"""Of one file, however it comes."""

MAX_PIXELS = 64 << 20
MAX_SECONDS = 4 * 3600
MAX_FRAMES = 4096
_TIMEOUT_SECONDS = 20.0


def read_bytes(source: str | bytes | Path, what: str) -> bytes:
    """The bytes of a file, a URL, a data URI or base64 text; what: the word for it in messages.

    Errors: UsageError when there is nothing to read there, or more than MAX_BYTES.
    """
    if isinstance(source, bytes):
        data = source
    elif isinstance(source, Path):
        data = _of_file(source, what)
    elif not isinstance(source, str):
        raise UsageError(f"The {what} is {source!r:.80}; it is a file, a URL or base64.")
    elif source.startswith("data:"):
        head, _, body = source.partition(",")
        data = _of_base64(body, what) if head.endswith(";base64") else unquote_to_bytes(body)
    elif urlparse(source).scheme in ("http", "https"):
        data = _of_url(source, what)
    elif urlparse(source).scheme == "file":
        data = _of_file(Path(unquote_to_bytes(urlparse(source).path).decode()), what)
    elif len(source) < 4096 and Path(source).is_file():
        data = _of_file(Path(source), what)
    else:
        data = _of_base64(source, what)
    if len(data) > MAX_BYTES:
        raise UsageError(f"The {what} has {len(data)} bytes; the most is {MAX_BYTES}.")
    return data


def _of_file(path: Path, what: str) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UsageError(f"{path} has {size} bytes; the most for a {what} is {MAX_BYTES}.")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"The {what} {path} cannot be read: {error.strerror}.") from error


def _of_base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        shown = text if len(text) <= 60 else f"{text[:60]}..."
        raise UsageError(f"The {what} {shown!r} is no file, no URL and no base64.") from error


def _of_url(url: str, what: str) -> bytes:
    try:
        with urlopen(Request(url, headers={"User-Agent": "fastkernels"}), timeout=_TIMEOUT_SECONDS) as answer:
            return answer.read(MAX_BYTES + 1)
    except (URLError, TimeoutError, OSError) as error:
        raise UsageError(f"The {what} {url} cannot be fetched: {error}.") from error


def load_image(source: Any) -> Image.Image:
    """RGB, upright.

    source: anything read_bytes takes, a PIL image, or an array [height, width, 3] uint8.
    Errors: UsageError when it is no picture, is broken, or has more than MAX_PIXELS.
    """
    if isinstance(source, Image.Image):
        return _upright(source)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3):
            raise UsageError(f"An image array is uint8 [height, width, 3], got {source.dtype} {source.shape}.")
        return _upright(Image.fromarray(source))
    data = read_bytes(source, "image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(data))
            _check_pixels(opened.size)
            opened.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"The image of {len(data)} bytes cannot be read: {error}.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UsageError(f"The image is too large: {error}") from error
    return _upright(opened)


def _check_pixels(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise UsageError(f"The image has {size[0]} x {size[1]} pixels; the most is {MAX_PIXELS}.")


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    _check_pixels(image.size)
    return (ImageOps.exif_transpose(image) or image).convert("RGB")


@cache
def _soundfile() -> Any:
    import soundfile

    return soundfile


def load_audio(source: Any, sampling_rate: int) -> np.ndarray:
    """[samples] float32 in [-1, 1], one channel, resampled to sampling_rate (Hz).

    source: anything read_bytes takes (WAV, FLAC, OGG, MP3), or an array [samples] that has that rate already.
    Errors: UsageError when it is no sound, is broken, or lasts more than MAX_SECONDS.
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 1 or not np.issubdtype(source.dtype, np.floating):
            raise UsageError(f"An audio array is float [samples], got {source.dtype} {source.shape}.")
        return source.astype(np.float32)
    data = read_bytes(source, "audio")
    soundfile = _soundfile()
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        raise UsageError(f"The audio of {len(data)} bytes cannot be read: {error}.") from error
    if len(samples) > MAX_SECONDS * rate:
        raise UsageError(f"The audio lasts {len(samples) / rate:.0f} s; the most is {MAX_SECONDS} s.")
    return resample(samples.mean(axis=1), rate, sampling_rate)


def resample(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """By a polyphase filter."""
    if rate == target:
        return samples.astype(np.float32)
    from math import gcd

    from scipy.signal import resample_poly

    common = gcd(rate, target)
    return resample_poly(samples, target // common, rate // common).astype(np.float32)


def load_video(source: Any, num_frames: int | None = None) -> np.ndarray:
    """[frames, height, width, 3] uint8; num_frames: so many, evenly spaced over the whole, some repeated when short.

    source: anything read_bytes takes (MP4, WebM, GIF), a list of images, or such an array.
    Errors: UsageError when it is no video, is broken, has no frame or more than MAX_FRAMES of them.
    """
    if isinstance(source, np.ndarray):
        frames = source
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise UsageError(f"A video array is uint8 [frames, height, width, 3], got {frames.dtype} {frames.shape}.")
    elif isinstance(source, list | tuple):
        frames = _stacked([np.asarray(load_image(one)) for one in source])
    else:
        frames = _stacked(_decoded(read_bytes(source, "video")))
    if not len(frames):
        raise UsageError("The video has no frame.")
    if num_frames is None:
        return frames
    return frames[np.linspace(0, len(frames) - 1, num_frames).round().astype(int)]


def _decoded(data: bytes) -> list[np.ndarray]:
    import av

    frames: list[np.ndarray] = []
    try:
        with av.open(io.BytesIO(data), "r") as container:
            for frame in container.decode(video=0):
                if len(frames) == MAX_FRAMES:
                    raise UsageError(f"The video has more than {MAX_FRAMES} frames.")
                frames.append(frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise UsageError(f"The video of {len(data)} bytes cannot be read: {error}.") from error
    return frames


def _stacked(frames: list[np.ndarray]) -> np.ndarray:
    if len({frame.shape for frame in frames}) > 1:
        raise UsageError("The frames of a video have one size; these have several.")
    return np.stack(frames) if frames else np.empty((0, 1, 1, 3), np.uint8)
