"""Pictures, sounds and videos as users give them: a path, a URL, a data URI, base64, bytes, or what a library read."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import unquote_to_bytes, urlparse
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fastkernels.errors import UsageError

MAX_BYTES = 64 << 20
"""Of one file, however it comes."""

MAX_PIXELS = 64 << 20
"""Of a picture, and of a frame of a video."""

MAX_SECONDS = 4 * 3600
MAX_SAMPLES = 1 << 29
"""Of all channels: 4 bytes each while they are mixed to one, 100 minutes of stereo at 44.1 kHz."""

MIN_RATE, MAX_RATE = 1000, 384_000
"""Of a recording, in Hz: the filter that resamples it is as long as twenty times a rate that has no common divisor."""

MAX_FRAMES = 4096
MAX_KEPT_PIXELS = 1 << 28
"""Of all frames that are taken of a video, 3 bytes each: 32 of 3840 x 2160 fit."""

MAX_DECODED_FRAMES = 1 << 17
MAX_DECODED_PIXELS = 1 << 36
"""Of all frames of a video, taken or not: some minutes of one core."""

Ints = NDArray[np.int64]
_SEVERAL_SIZES = "The frames of a video have one size; these have several."
_BLOCK_SAMPLES = 1 << 20
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
            _check_pixels(opened.size, "The image")
            opened.load()
            return _upright(opened)
    except UsageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UsageError(f"The image is too large: {error}") from error
    except UnidentifiedImageError as error:
        raise _unreadable("image", data, "it is of no known format") from error
    except Exception as error:  # of a broken file Pillow raises whatever it comes to: struct.error, NotImplementedError
        raise _unreadable("image", data, error) from error


def _unreadable(what: str, data: bytes, reason: object) -> UsageError:
    return UsageError(f"The {what} of {len(data)} bytes cannot be read: {str(reason).rstrip('. ')}.")


def _check_pixels(size: tuple[int, int], what: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise UsageError(f"{what} has {size[0]} x {size[1]} pixels; the most is {MAX_PIXELS}.")


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    _check_pixels(image.size, "The image")
    return (ImageOps.exif_transpose(image) or image).convert("RGB")


@cache
def _soundfile() -> Any:
    import soundfile

    return soundfile


def load_audio(source: Any, sampling_rate: int) -> np.ndarray:
    """[samples] float32 in [-1, 1], one channel, resampled to sampling_rate (Hz).

    source: anything read_bytes takes (WAV, FLAC, OGG, MP3), or an array [samples] that has that rate already.
    Errors: UsageError when it is no sound, is broken, lasts more than MAX_SECONDS, has more than MAX_SAMPLES, or a
        rate outside [MIN_RATE, MAX_RATE].
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 1 or not np.issubdtype(source.dtype, np.floating):
            raise UsageError(f"An audio array is float [samples], got {source.dtype} {source.shape}.")
        return source.astype(np.float32)
    data = read_bytes(source, "audio")
    soundfile = _soundfile()
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_length(file.frames, file.channels, file.samplerate)
            samples, rate = _mixed(file), file.samplerate
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        raise _unreadable("audio", data, getattr(error, "error_string", error)) from error
    return resample(samples, rate, sampling_rate)


def _check_length(num_frames: int, num_channels: int, rate: int) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise UsageError(f"The audio has {rate} samples a second; it is resampled from {MIN_RATE} to {MAX_RATE}.")
    if num_frames > MAX_SECONDS * rate:
        raise UsageError(f"The audio lasts {num_frames / rate:.0f} s; the most is {MAX_SECONDS} s.")
    if num_frames * num_channels > MAX_SAMPLES:
        raise UsageError(
            f"The audio has {num_channels} channels of {num_frames} samples; the most is {MAX_SAMPLES} together. Send "
            "one channel, or a lower rate."
        )


def _mixed(file: Any) -> np.ndarray:
    """The mean of all channels, block by block. Shape: [frames] float32."""
    mixed = np.empty(file.frames, np.float32)
    length = max(1, _BLOCK_SAMPLES // file.channels)
    end = 0
    while end < len(mixed):
        block = file.read(min(length, len(mixed) - end), dtype="float32", always_2d=True)
        if not len(block):
            break  # it is shorter than it says
        mixed[end : end + len(block)] = block.mean(axis=1)
        end += len(block)
    return mixed[:end]


def resample(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """By a polyphase filter."""
    if rate == target:
        return samples.astype(np.float32, copy=False)
    from math import gcd

    from scipy.signal import resample_poly

    common = gcd(rate, target)
    return resample_poly(samples, target // common, rate // common).astype(np.float32, copy=False)


def load_video(source: Any, num_frames: int | None = None, most_frames: int | None = None) -> np.ndarray:
    """[frames, height, width, 3] uint8, evenly spaced over the whole.

    source: anything read_bytes takes (MP4, WebM, GIF), a list of images, or such an array. num_frames: so many, some
        repeated when it is short; most_frames: at most so many; else all. Of a file the others are not kept.
    Errors: UsageError when it is no video, is broken, has no frame, or passes one of the limits above.
    """
    if num_frames is not None and num_frames > MAX_FRAMES:
        raise UsageError(f"{num_frames} frames are asked of the video; the most is {MAX_FRAMES}.")

    def chosen(count: int) -> Ints:
        wanted = min(count, most_frames or count) if num_frames is None else num_frames
        return np.linspace(0, count - 1, wanted if count else 0).round().astype(np.int64)

    if isinstance(source, np.ndarray):
        frames = source
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise UsageError(f"A video array is uint8 [frames, height, width, 3], got {frames.dtype} {frames.shape}.")
    elif isinstance(source, list | tuple):
        frames = _stacked([np.asarray(load_image(one)) for one in source])
    else:
        return _of_video_file(read_bytes(source, "video"), chosen)
    if not len(frames):
        raise UsageError("The video has no frame.")
    return frames if num_frames is None and most_frames is None else frames[chosen(len(frames))]


def _of_video_file(data: bytes, chosen: Callable[[int], Ints]) -> np.ndarray:
    """The chosen of its frames. What the file says of their number is believed until they are counted."""
    import av

    try:
        with av.open(io.BytesIO(data), "r") as container:
            said = container.streams.video[0].frames  # 0 where the format does not say
        if said > MAX_DECODED_FRAMES:
            raise UsageError(f"The video has {said} frames; the most that are looked through is {MAX_DECODED_FRAMES}.")
        count, frames = _decoded(data, chosen(said))
        if count != said:
            count, frames = _decoded(data, chosen(count))
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise _unreadable("video", data, getattr(error, "strerror", None) or error) from error
    if not count:
        raise UsageError("The video has no frame.")
    return frames


def _decoded(data: bytes, wanted: Ints) -> tuple[int, np.ndarray]:
    """The number of frames, and those whose indices are wanted, in order; none of the others is converted."""
    import av

    indices, repeats = np.unique(wanted, return_inverse=True)
    if len(indices) > MAX_FRAMES:
        raise UsageError(f"The video has {len(indices)} frames; the most that are taken is {MAX_FRAMES}.")
    places = {int(index): place for place, index in enumerate(indices)}
    kept = np.empty((0, 1, 1, 3), np.uint8)
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        _check_pixels((stream.width, stream.height), "A frame of the video")
        num_pixels = count = 0
        for frame in container.decode(stream):
            _check_pixels((frame.width, frame.height), "A frame of the video")
            num_pixels += frame.width * frame.height
            if count == MAX_DECODED_FRAMES or num_pixels > MAX_DECODED_PIXELS:
                raise UsageError(
                    f"The video has more than {count} frames of {frame.width} x {frame.height} pixels; the most that "
                    f"are looked through is {MAX_DECODED_FRAMES} frames of {MAX_DECODED_PIXELS} pixels together."
                )
            if count in places:
                if not len(kept):
                    kept = _room_for(len(indices), frame.width, frame.height)
                kept[places[count]] = _pixels(frame, kept.shape[1:])
            count += 1
    return count, kept if len(indices) == len(wanted) else kept[repeats]


def _room_for(num_frames: int, width: int, height: int) -> np.ndarray:
    if num_frames * width * height > MAX_KEPT_PIXELS:
        raise UsageError(
            f"{num_frames} frames of {width} x {height} pixels are asked of the video; the most is {MAX_KEPT_PIXELS} "
            "pixels together. Ask for fewer frames, or send a smaller video."
        )
    return np.empty((num_frames, height, width, 3), np.uint8)


def _pixels(frame: Any, shape: tuple[int, ...]) -> np.ndarray:
    pixels: np.ndarray = frame.to_ndarray(format="rgb24")
    if pixels.shape != shape:
        raise UsageError(_SEVERAL_SIZES)
    return pixels


def _stacked(frames: list[np.ndarray]) -> np.ndarray:
    if len({frame.shape for frame in frames}) > 1:
        raise UsageError(_SEVERAL_SIZES)
    return np.stack(frames) if frames else np.empty((0, 1, 1, 3), np.uint8)
