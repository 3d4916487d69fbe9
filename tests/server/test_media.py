"""Pictures and videos in chat requests: from data URLs and files, in order, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI
from PIL import Image
from skimage import data
from waiting import dripping, send, wait_until

from fastkernels.engine.llm import LLM
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.server import media
from fastkernels.server.errors import ApiError
from fastkernels.server.fetch import Fetcher
from fastkernels.server.local import LocalServer, running_server
from fastkernels.server.protocol import Message

MODEL = "tiny-qwen2_vl"
PLACE = "<|vision_start|><|image_pad|><|vision_end|>"


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


CAT = png(data.chelsea()[:90, :130])
MAN = png(data.astronaut()[:70, :60])


def url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image_part(address: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": address}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media")
    (path / "cat.png").write_bytes(CAT)
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LocalServer]:
    options = ("--device", "cpu", "--allowed-local-media-path", str(folder), "--max-body-bytes", "100000000")
    options += ("--allowed-media-domain", "127.0.0.1")
    with running_server(MODEL, *options) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as openai_client:
        yield openai_client


def ask(client: OpenAI, content: Any, **more: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=6, extra_body={"ignore_eos": True}, **more
    )


@pytest.fixture(scope="module")
def expected() -> str:
    """Of a cat, a word and a man, by the engine without a server."""
    llm = LLM(MODEL, device="cpu")
    prompt = {
        "prompt": f"user: {PLACE}and{PLACE}\nassistant:",
        "multi_modal_data": {"image": [CAT, MAN]},
    }
    [output] = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    return output.outputs[0].text


def test_pictures_stand_where_their_parts_stand(client: OpenAI, expected: str) -> None:
    answer = ask(client, [image_part(url(CAT)), text_part("and"), image_part(url(MAN))])
    assert answer.choices[0].message.content == expected
    other = ask(client, [image_part(url(MAN)), text_part("and"), image_part(url(CAT))])
    assert other.choices[0].message.content != expected
    assert other.usage.prompt_tokens == answer.usage.prompt_tokens > 20


def test_a_stream_says_what_one_answer_says(client: OpenAI, expected: str) -> None:
    parts = [image_part(url(CAT)), text_part("and"), image_part(url(MAN))]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in ask(client, parts, stream=True)) == expected


def test_allowed_files_and_served_files_equal_sent_ones(client: OpenAI, folder: Path, expected: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(MAN)

        def log_message(self, *_: Any) -> None:
            pass

    files = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=files.serve_forever)
    thread.start()
    try:
        parts = [
            image_part((folder / "cat.png").as_uri()),
            text_part("and"),
            image_part(f"http://127.0.0.1:{files.server_port}/man.png"),
        ]
        assert ask(client, parts).choices[0].message.content == expected
    finally:
        files.shutdown()
        thread.join()
        files.server_close()


def test_a_video_is_answered(client: OpenAI) -> None:
    file = io.BytesIO()
    frames = [Image.fromarray(data.chelsea()[:60, i : i + 84]) for i in (0, 9, 30)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    part = {"type": "video_url", "video_url": {"url": url(file.getvalue(), "image/gif")}}
    answer = ask(client, [part, text_part("what moves?")])
    assert answer.usage.prompt_tokens > 2 * 128  # two pairs of frames of the least size
    assert answer.usage.completion_tokens == 6


def test_of_a_video_file_32_frames_are_taken(client: OpenAI) -> None:
    file = io.BytesIO()
    frames = [Image.fromarray(np.full((28, 28, 3), 5 * i, np.uint8)) for i in range(40)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    content = [{"type": "video_url", "video_url": {"url": url(file.getvalue(), "image/gif")}}]
    with pytest.raises(openai.BadRequestError, match="max_model_len") as refused:
        ask(client, content)
    num_tokens = int(re.search(r"has (\d+) tokens", str(refused.value))[1])  # type: ignore[index]
    assert 16 * 121 <= num_tokens < 17 * 144 + 40, "16 pairs of frames; 40 frames are 20"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("file:///etc/passwd", "only those below .* may be named"),
        ("file:///etc/../etc/hostname", "only those below .* may be named"),
        ("/etc/passwd", "no http, https or data URL"),
        ("ftp://127.0.0.1/cat.png", "no http, https or data URL"),
        ("http://[", "no URL"),
        ("http://127.0.0.1:9/cat.png", "cannot be fetched"),
        ("http://localhost:9/cat.png", "may not be fetched: this server takes media from 127.0.0.1 alone"),
        ("data:image/png;base64,????", "no base64"),
        (url(b"not a picture"), "The image of 13 bytes cannot be read: it is of no known format\\."),
        (url(CAT[:300]), "cannot be read"),
        (url(png(np.zeros((2, 900, 3), np.uint8))), "aspect ratio"),
    ],
    ids=["file", "dots", "path", "ftp", "no-url", "nobody", "host", "base64", "text", "cut", "thin"],
)
def test_what_cannot_be_used_is_a_400(client: OpenAI, address: str, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        ask(client, [image_part(address), text_part("?")])


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("file:///etc/passwd", "'file:///etc/passwd' may not be read: of this machine's files none may be named."),
        ("data:image/png,\ud800", "messages holds a lone surrogate at 15; it is no Unicode text."),
    ],
)
def test_what_no_server_takes_is_told_in_whole_sentences(address: str, says: str) -> None:
    service: Any = SimpleNamespace(
        config=SimpleNamespace(allowed_local_media_path=None), check_text=lambda *_: None, processor=lambda *_: None
    )
    message = Message.model_validate({"role": "user", "content": [image_part(address)]})
    with pytest.raises(ApiError) as refused:
        asyncio.run(media.process(service, [message], ""))
    assert (refused.value.message, refused.value.param) == (says, "messages")


def test_recordings_of_a_chat_come_to_a_model_that_hears_as_they_were_sent() -> None:
    """No model that chats hears yet: the processor stands in for one's."""
    given: dict[str, Any] = {}

    class Hears:
        modalities = ("audio",)
        needs_media = False

        def placeholder(self, modality: str) -> str:
            return f"<{modality}>"

        def __call__(self, text: str, contents: dict[str, list[bytes]], **_: Any) -> None:
            given.update(text=text, **contents)

    class Hosts(Fetcher):
        async def fetch(self, address: str, *_: Any) -> bytes:
            return address.encode()

    service: Any = SimpleNamespace(
        fetcher=Hosts(),
        config=SimpleNamespace(allowed_local_media_path=None),
        check_text=lambda *_: None,
        processor=Hears(),
    )
    parts = [
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"one").decode(), "format": "mp3"}},
        text_part("or"),
        {"type": "audio_url", "audio_url": {"url": "https://sounds.org/two.wav"}},
    ]
    message = Message.model_validate({"role": "user", "content": parts})
    content = message.for_template(service.processor)["content"]
    asyncio.run(media.process(service, [message], content))
    assert given == {"text": "<audio>or<audio>", "audio": [b"one", b"https://sounds.org/two.wav"]}


@pytest.mark.parametrize("way", ["fetched", "sent", "both"])
def test_the_files_of_a_request_have_a_limit_together(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(media, "MAX_SUM_BYTES", 250)
    fetched: list[str] = []

    class Hosts(Fetcher):
        async def fetch(self, address: str, *_: Any) -> bytes:
            fetched.append(address)
            return bytes(100)

    service: Any = SimpleNamespace(
        fetcher=Hosts(),
        config=SimpleNamespace(allowed_local_media_path=None),
        check_text=lambda *_: None,
        processor=lambda text, contents, **_: [len(one) for one in contents["image"]],
    )
    named, sent = "http://pictures.org/cat.png", url(bytes(100))
    addresses = {"fetched": [named] * 9, "sent": [sent] * 9, "both": [sent, named, named, sent]}[way]

    def asked(num: int) -> Any:
        parts = [image_part(address) for address in addresses[:num]]
        return asyncio.run(media.process(service, [Message.model_validate({"role": "user", "content": parts})], ""))

    assert asked(2) == [100, 100]
    fetched.clear()
    with pytest.raises(ApiError, match=r"^messages: 3 of \d files have 300 bytes together; .* is 250\. Send fewer"):
        asked(9)
    assert len(fetched) == {"fetched": 3, "sent": 0, "both": 2}[way]


def test_a_slow_host_holds_up_nobody_else_and_nobody_who_left(client: OpenAI, server: LocalServer) -> None:
    cat = [image_part(url(CAT)), text_part("?")]
    expected = ask(client, cat).choices[0].message.content
    with dripping(b"HTTP/1.0 200 OK\r\n\r\n") as host:
        messages = [{"role": "user", "content": [image_part(host.url), text_part("?")]}]
        asked = [send(server.url, "/v1/chat/completions", messages=messages) for _ in range(40)]
        wait_until(lambda: host.num_open == 16)
        assert ask(client, cat, timeout=20).choices[0].message.content == expected
        for sock in asked:
            sock.close()
        wait_until(lambda: server.log.count('"outcome": "aborted"') == 40)
        wait_until(lambda: host.num_open == 0)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image_url"}, "without image_url"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "takes text, image, video"),
        ({"type": "input_audio", "input_audio": {"data": ""}}, "input_audio"),
        ({"type": "audio_url", "audio_url": {"url": "data:,"}}, "'audio_url'; this model takes text, image, video"),
        ({"type": "text"}, "without text"),
    ],
    ids=["nothing", "audio", "no-format", "audio-url", "text"],
)
def test_parts_of_another_form_are_a_400(client: OpenAI, part: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        ask(client, [part])


def test_a_placeholder_without_a_picture_is_a_400(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"1 image placeholders .* 0 images"):
        client.completions.create(model=MODEL, prompt=[5, 514, 6], max_tokens=2)


def test_too_many_tokens_of_pictures_are_a_400_and_the_next_request_is_served(client: OpenAI, expected: str) -> None:
    large = url(png(data.astronaut()))
    with pytest.raises(openai.BadRequestError, match="max_model_len"):
        ask(client, [image_part(large)] * 5)
    assert ask(client, [image_part(url(CAT)), text_part("and"), image_part(url(MAN))]).choices[0].message.content
