"""Pictures, sounds and videos as users give them, good and bad; and what a pipeline's answers are written to."""

from __future__ import annotations

import base64
import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file

from fastkernels import LLM, Pipeline
from fastkernels.errors import UnsupportedError, UsageError
from fastkernels.pipelines import media
from fastkernels.pipelines.media import load_audio, load_image, load_video
from fastkernels.pipelines.result import Result

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def png(pixels: np.ndarray = PIXELS) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def wav(samples: np.ndarray, rate: int) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, samples, rate, format="WAV")
    return data.getvalue()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(png() if self.path == "/a.png" else b"")

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_image_comes_by_path_url_base64_bytes_and_array(tmp_path: Path, url: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    text = base64.b64encode(png()).decode()
    for source in (path, str(path), f"file://{path}", f"{url}/a.png", f"data:image/png;base64,{text}", text, png()):
        assert np.array_equal(np.asarray(load_image(source)), PIXELS)
    for source in (PIXELS, Image.fromarray(PIXELS)):
        assert np.array_equal(np.asarray(load_image(source)), PIXELS)
    assert load_image(PIXELS[..., 0]).mode == "RGB"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"no picture at all", r"^The image of 17 bytes cannot be read: it is of no known format\.$"),
        (png()[:60], "cannot be read"),
        ("no/such/file.png", "no file, no URL and no base64"),
        (Path("no/such/file.png"), "No such file"),
        (np.zeros((3, 4, 3), dtype=np.float32), "uint8"),
    ],
)
def test_a_broken_image_is_refused_with_what_is_wrong(source: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_image(source)


def saved(kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    Image.fromarray(PIXELS).save(data, kind, **options)  # type: ignore[arg-type]
    return data.getvalue()


def turned(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    exif[0x010F] = "maker"
    return saved(kind, exif=exif.tobytes())


def test_a_turned_image_is_upright_and_one_whose_exif_is_broken_is_refused() -> None:
    for kind in ("JPEG", "WEBP", "PNG"):
        good = turned(kind)
        assert load_image(good).size == PIXELS.shape[:2]
        assert good.count(b"MM\0*") == 1
    for kind, broken in (("WEBP", b"MM\0G"), ("JPEG", b"MM\0*\xff\xff\xff\xff")):
        content = turned(kind)
        place = content.index(b"MM\0*")
        with pytest.raises(UsageError, match=f"The image of {len(content)} bytes cannot be read"):
            load_image(content[:place] + broken + content[place + len(broken) :])


def test_an_image_of_a_kind_that_pillow_knows_but_cannot_read_is_refused() -> None:
    content = bytearray(saved("DDS"))
    content[80:88] = b"\x04\0\0\0what"  # the format of pixels by a name that nobody gave one
    with pytest.raises(UsageError, match=r"cannot be read: Unimplemented pixel format"):
        load_image(bytes(content))


def test_a_huge_image_or_file_is_refused_with_the_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(media, "MAX_PIXELS", 100)
    with pytest.raises(UsageError, match="20 x 12 pixels; the most is 100"):
        load_image(png())
    monkeypatch.setattr(media, "MAX_BYTES", 50)
    (tmp_path / "a.png").write_bytes(png())
    for source in (png(), tmp_path / "a.png"):
        with pytest.raises(UsageError, match=r"the most .*is 50"):
            load_image(source)


def test_a_url_that_is_not_there_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be fetched: HTTP Error 404"):
        load_image(f"{url}/b.png")


def test_audio_is_mixed_to_one_channel_and_resampled(tmp_path: Path) -> None:
    seconds = np.arange(8000) / 8000
    tone = 0.5 * np.sin(2 * np.pi * 440 * seconds)
    heard = load_audio(wav(np.stack([tone, tone], axis=1), 8000), 16000)
    assert heard.dtype == np.float32
    assert heard.shape == (16000,)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(heard - expected)[200:-200].max() < 0.01
    assert load_audio(tone.astype(np.float64), 8000).shape == (8000,)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"RIFF", r"^The audio of 4 bytes cannot be read: Format not recognised\.$"),
        (b"", r"^The audio of 0 bytes cannot be read: Format not recognised\.$"),
        (np.zeros((2, 5)), "audio"),
        (np.zeros(5, dtype=np.int16), "audio"),
    ],
)
def test_broken_audio_is_refused(source: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_audio(source, 16000)


@pytest.mark.parametrize("rate", [1, 999, 384_001, 1_000_003, 2**31 - 1])
def test_a_rate_that_would_need_an_endless_filter_is_refused(monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    monkeypatch.setattr(media, "resample", lambda *_: pytest.fail("it was resampled"))
    with pytest.raises(UsageError, match=f"has {rate} samples a second; it is resampled from 1000 to 384000"):
        load_audio(wav(np.zeros(100), rate), 16000)


def test_audio_that_lasts_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_SECONDS", 1)
    with pytest.raises(UsageError, match="lasts 2 s; the most is 1 s"):
        load_audio(wav(np.zeros(16000), 8000), 8000)


def flac(num_samples: int, num_channels: int, rate: int) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, np.zeros((num_samples, num_channels), np.int16), rate, format="FLAC")
    return data.getvalue()


@pytest.mark.parametrize(
    ("limit", "says"),
    [({"MAX_SECONDS": 1}, "lasts 2 s; the most is 1 s"), ({"MAX_SAMPLES": 9999}, "4 channels of 4000 .* is 9999")],
)
def test_audio_that_is_too_long_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch, limit: dict[str, int], says: str
) -> None:
    for name, value in limit.items():
        monkeypatch.setattr(media, name, value)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(UsageError, match=says):
        load_audio(flac(4000, 4, 2000), 2000)


def test_audio_is_mixed_block_by_block_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = np.random.default_rng(1).uniform(-1, 1, (1000, 3)).astype(np.float32)
    data = io.BytesIO()
    soundfile.write(data, sound, 8000, format="WAV", subtype="FLOAT")
    monkeypatch.setattr(media, "_BLOCK_SAMPLES", 100)
    blocks: list[int] = []
    read = soundfile.SoundFile.read

    def seen(file: soundfile.SoundFile, frames: int, **options: object) -> np.ndarray:
        blocks.append(frames)
        return read(file, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", seen)
    assert np.array_equal(load_audio(data.getvalue(), 8000), sound.mean(axis=1))
    assert max(blocks) * 3 <= 100


def video_bytes(num_frames: int, kind: str = "mp4") -> bytes:
    import av

    data = io.BytesIO()
    with av.open(data, "w", format=kind) as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for i in range(num_frames):
            frame = np.full((16, 32, 3), 20 * i, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return data.getvalue()


def test_a_video_is_its_frames_evenly_spaced() -> None:
    frames = load_video(video_bytes(9))
    assert frames.shape == (9, 16, 32, 3)
    assert np.abs(frames.mean(axis=(1, 2, 3)) - 20 * np.arange(9)).max() < 6
    assert np.array_equal(load_video(frames, 3), frames[[0, 4, 8]])
    assert np.array_equal(load_video(video_bytes(1), 4), np.repeat(load_video(video_bytes(1)), 4, axis=0))


@pytest.mark.parametrize("kind", ["mp4", "matroska"])
def test_of_a_video_file_only_the_frames_that_are_taken_are_converted(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """matroska does not say how many there are."""
    whole = load_video(video_bytes(12, kind))
    converted: list[tuple[int, ...]] = []
    pixels = media._pixels

    def counted(frame: object, shape: tuple[int, ...]) -> np.ndarray:
        converted.append(shape)
        return pixels(frame, shape)

    monkeypatch.setattr(media, "_pixels", counted)
    monkeypatch.setattr(media, "MAX_FRAMES", 4)
    chosen = np.linspace(0, 11, 4).round().astype(int)
    for options in ({"num_frames": 4}, {"most_frames": 4}):
        converted.clear()
        assert np.array_equal(load_video(video_bytes(12, kind), **options), whole[chosen])
        assert len(converted) == 4
    assert np.array_equal(load_video(video_bytes(3, kind), most_frames=4), load_video(video_bytes(3, kind)))
    with pytest.raises(UsageError, match=r"12 frames; the most .* 4"):
        load_video(video_bytes(12, kind))


@pytest.mark.parametrize("said", [0, 5, 40])
def test_a_wrong_number_of_frames_in_the_file_is_not_believed(said: int) -> None:
    """An avi file has it in its strh chunk, behind 32 bytes of other things."""
    import av

    data = video_bytes(12, "avi")
    place = data.index(b"strh") + 8 + 32
    assert int.from_bytes(data[place : place + 4], "little") == 12
    lying = data[:place] + said.to_bytes(4, "little") + data[place + 4 :]
    with av.open(io.BytesIO(lying)) as container:
        assert container.streams.video[0].frames == said
    assert np.array_equal(load_video(lying, 3), load_video(data)[np.linspace(0, 11, 3).round().astype(int)])


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"MAX_PIXELS": 500}, "A frame of the video has 32 x 16 pixels; the most is 500"),
        ({"MAX_KEPT_PIXELS": 2000}, "4 frames of 32 x 16 pixels are asked .* the most is 2000"),
        ({"MAX_DECODED_FRAMES": 8}, "the most that are looked through is 8"),
        ({"MAX_DECODED_PIXELS": 4000}, "the most that are looked through is .* of 4000 pixels"),
    ],
)
@pytest.mark.parametrize("kind", ["mp4", "matroska"])
def test_a_large_video_is_refused_with_the_limit(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], says: str, kind: str
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(media, name, value)
    with pytest.raises(UsageError, match=says):
        load_video(video_bytes(12, kind), most_frames=4)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"no video", r"^The video of 8 bytes cannot be read: Invalid data found [^']*\.$"),
        ([], "no frame"),
        (np.zeros((0, 4, 4, 3), dtype=np.uint8), "no frame"),
        (np.zeros((4, 4, 3), dtype=np.uint8), r"\[frames, height, width, 3\]"),
        ([PIXELS, PIXELS[:5]], "several"),
    ],
)
def test_a_broken_video_is_refused(source: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_video(source)


def test_a_result_is_written_as_it_is_and_shared_memory_is_no_trouble(tmp_path: Path) -> None:
    whole = torch.randn(5, 4)
    result = Result({"whole": whole, "first": whole[0], "turned": whole.t()})
    result.save(tmp_path / "a.safetensors")
    for name, tensor in load_file(tmp_path / "a.safetensors").items():
        assert torch.equal(tensor, result.tensors[name])
    assert result.to_json()["first"] == whole[0].tolist()
    with pytest.raises(UsageError, match=r"a.png: this answer is written as .safetensors"):
        result.save(tmp_path / "a.png")


def test_each_door_names_the_other() -> None:
    with pytest.raises(UnsupportedError, match="tiny-llama makes tokens; use LLM"):
        Pipeline("tiny-llama", device="cpu")
    with pytest.raises(UnsupportedError, match=r"tiny-dinov3 makes no tokens; use Pipeline, or `.* with --input"):
        LLM("tiny-dinov3", device="cpu")


def test_a_wrong_request_runs_nothing_and_the_next_one_runs() -> None:
    pipeline = Pipeline("tiny-dinov3", device="cpu")
    for wrong, says in (({}, "got nothing"), ({"image": b"x"}, "cannot be read"), ({"pixel_values": [[1.0]]}, "sides")):
        with pytest.raises(UsageError, match=says):
            pipeline.run([{"image": PIXELS}, wrong])
        assert not pipeline.core.has_unfinished
    one, two = pipeline.run([{"image": PIXELS}, {"image": png()}])
    assert torch.allclose(one.tensors["pooler_output"], two.tensors["pooler_output"], atol=1e-5)
    assert pipeline.core.num_steps == 1
