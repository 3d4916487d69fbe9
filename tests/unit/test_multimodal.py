"""Pictures in the engine: encoded once, chunked, cached by content, computed again after preemption, refused."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from fastkernels.engine.llm import LLM
from fastkernels.engine.multimodal import Media, MediaItem, MediaPlanner, ProcessedPrompt, rope_positions
from fastkernels.engine.request import Request
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.engine.scheduler import ScheduledRow
from fastkernels.errors import UnsupportedError, UsageError
from fastkernels.pipelines.qwen2_vl import Qwen2VLProcessor
from fastkernels.tasks.configs.qwen2_vl import Qwen2VLConfig
from fastkernels.workloads import byte_tokenizer

MODEL = "tiny-qwen2_vl"
PLACE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
GREEDY = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def prompt(text: str, **data: Any) -> dict[str, Any]:
    return {"prompt": text, "multi_modal_data": data}


def tokens(llm: LLM, prompts: Sequence[Any], params: SamplingParams = GREEDY) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params)]


def count_encoded(llm: LLM) -> list[int]:
    """The number of items of every call of the encoder, from now on."""
    model = llm.core.executor.model  # type: ignore[attr-defined]
    calls: list[int] = []
    embed = model.embed_multimodal

    def counting(modality: str, items: Sequence[Any]) -> Any:
        calls.append(len(items))
        return embed(modality, items)

    model.embed_multimodal = counting
    return calls


@pytest.fixture(scope="module")
def plain() -> LLM:
    return LLM(MODEL, device="cpu", enable_prefix_caching=False)


@pytest.fixture(scope="module")
def requests() -> list[Any]:
    return [
        "text alone",
        prompt(f"one {PLACE} picture", image=pixels(70, 200)),
        prompt(f"{PLACE}{PLACE} two", image=[pixels(57, 90, seed=1), pixels(120, 60, seed=2)]),
        prompt(f"a video {VIDEO}", video=pixels(3, 60, 70, seed=3)),
    ]


@pytest.fixture(scope="module")
def expected(plain: LLM, requests: list[Any]) -> list[list[int]]:
    return [tokens(plain, [one])[0] for one in requests]


def assert_nothing_is_kept(llm: LLM) -> None:
    assert len(llm.core.runner.media) == 0  # type: ignore[attr-defined]
    assert llm.core._planner is not None
    assert llm.core._planner.num_held == 0


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_chunks_of_any_size_encode_each_item_once(requests: list[Any], expected: list[list[int]], chunk: int) -> None:
    llm = LLM(MODEL, device="cpu", max_num_batched_tokens=chunk, max_num_seqs=3, enable_prefix_caching=False)
    calls = count_encoded(llm)
    assert tokens(llm, requests) == expected
    assert sum(calls) == 4
    assert_nothing_is_kept(llm)


def test_a_picture_that_two_requests_share_is_encoded_once(plain: LLM) -> None:
    one = prompt(f"{PLACE} what?", image=pixels(70, 200))
    calls = count_encoded(plain)
    first, second = tokens(plain, [one, one])
    assert first == second
    assert calls == [1]
    assert tokens(plain, [one], SamplingParams(n=2, temperature=0, max_tokens=5, ignore_eos=True))[0] == first
    assert calls == [1, 1]


def test_prefixes_are_shared_by_content_not_by_placeholders(requests: list[Any], expected: list[list[int]]) -> None:
    llm = LLM(MODEL, device="cpu", page_size=4)
    other = prompt(f"one {PLACE} picture", image=pixels(70, 200, seed=9))
    assert tokens(llm, requests) == expected
    again = llm.generate(requests, GREEDY)
    assert [output.outputs[0].token_ids for output in again] == expected
    assert all(output.num_cached_tokens > 0.7 * len(output.prompt_token_ids) for output in again[1:])
    calls = count_encoded(llm)
    assert tokens(llm, [requests[1]]) == [expected[1]]
    assert calls == []  # every page that the picture reaches into was known
    [output] = llm.generate([other], GREEDY)
    assert output.prompt_token_ids == again[1].prompt_token_ids
    assert output.num_cached_tokens <= 8  # no page that the picture reaches into
    assert output.outputs[0].token_ids != expected[1]
    assert sum(calls) == 1


def test_preempted_pictures_are_computed_again(requests: list[Any]) -> None:
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    many = [requests[1], requests[2], requests[1], requests[2]]
    roomy = LLM(MODEL, device="cpu", enable_prefix_caching=False)
    tight = LLM(MODEL, device="cpu", enable_prefix_caching=False, page_size=4, num_pages=36)
    assert tokens(tight, many, params) == tokens(roomy, many, params)
    assert tight.core.stats().num_preemptions > 0
    assert_nothing_is_kept(tight)


def test_aborted_pictures_are_let_go(requests: list[Any]) -> None:
    llm = LLM(MODEL, device="cpu", max_num_batched_tokens=4, enable_prefix_caching=False)
    read = llm.processor
    assert read is not None
    made = read(requests[1]["prompt"], requests[1]["multi_modal_data"])
    [request] = llm._processor.add("0", None, made.token_ids, GREEDY, media=made.media)
    llm.core.add(request)
    for _ in range(3):
        llm.core.step()
    assert len(llm.core.runner.media) == 1  # type: ignore[attr-defined]
    llm._processor.abort("0")
    llm.core.abort(["0"])
    tokens(llm, ["hello"])
    assert_nothing_is_kept(llm)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (prompt(PLACE, image=[pixels(60, 60)] * 3), r"1 image placeholders .* and 3 images"),
        (prompt(PLACE * 2, image=pixels(60, 60)), r"2 image placeholders .* and 1 images"),
        (prompt(PLACE), r"1 image placeholders .* and 0 images"),
        (prompt(PLACE, video=pixels(2, 60, 60)), r"1 image placeholders .* and 0 images"),
        (prompt("hi", image=b"no picture"), "placeholders"),
        (prompt(PLACE, image=b"no picture"), "cannot be read"),
        (prompt(PLACE, image=pixels(2, 900)), "aspect ratio"),
        (prompt(VIDEO, video=np.zeros((0, 60, 60, 3), np.uint8)), "no frame"),
        ({"prompt": "a", "prompt_token_ids": [1]}, "prompt or prompt_token_ids"),
        ({"text": "a"}, "prompt or prompt_token_ids"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(plain: LLM, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plain.generate([given], GREEDY)


def test_another_modality_is_refused_by_name(plain: LLM) -> None:
    with pytest.raises(UnsupportedError, match="image and video, not audio"):
        plain.generate(prompt("hi", audio=b""), GREEDY)


def test_a_text_only_model_refuses_pictures() -> None:
    llm = LLM("tiny-llama", device="cpu")
    with pytest.raises(UnsupportedError, match=r"text only.*image"):
        llm.generate(prompt("hi", image=pixels(60, 60)), GREEDY)
    assert tokens(llm, [{"prompt": "hi"}]) == tokens(llm, ["hi"])


class _Meeting:
    """A processor whose calls wait for each other: one after another they would never end."""

    modalities = ("image",)

    def __init__(self, num: int) -> None:
        self.barrier = threading.Barrier(num, timeout=20)

    def __call__(self, prompt: Any, data: Any, add_special_tokens: bool = True) -> ProcessedPrompt:
        self.barrier.wait()
        if data["image"] == "broken":
            raise UsageError("No picture.")
        return ProcessedPrompt(tuple(prompt))


def test_media_of_several_prompts_are_read_at_once_and_answered_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM("tiny-llama", device="cpu", num_pages=64)
    prompts = [[1 + i] * (9 - i) for i in range(3)]
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    llm.processor = _Meeting(3)  # type: ignore[assignment]
    given = [{"prompt_token_ids": ids, "multi_modal_data": {"image": "some"}} for ids in prompts]
    outputs = llm.generate(given, SamplingParams(max_tokens=1, temperature=0))
    assert [list(output.prompt_token_ids) for output in outputs] == prompts
    given[1] = {"prompt_token_ids": prompts[1], "multi_modal_data": {"image": "broken"}}
    with pytest.raises(UsageError, match="No picture"):
        llm.generate(given, SamplingParams(max_tokens=1))
    assert not llm.core.has_unfinished


def test_a_prompt_longer_than_the_model_names_the_limit(plain: LLM) -> None:
    with pytest.raises(UnsupportedError, match="max_model_len is 1024"):
        plain.generate(prompt(PLACE * 4, image=[pixels(512, 512)] * 4), GREEDY)


def processor() -> Qwen2VLProcessor:
    config = Qwen2VLConfig.tiny(516)
    return Qwen2VLProcessor(config, byte_tokenizer())


def test_positions_go_on_behind_the_largest_of_an_item() -> None:
    # 4 x 4 pixels a patch: 56 x 64 pixels are 7 x 8 squares of four; text before and after.
    made = processor()([1, 2, 514, 3], {"image": pixels(56, 64)})
    assert made.media is not None
    assert made.media.positions is not None
    assert made.media.positions[:, :2].tolist() == [[0, 1]] * 3
    time, rows, columns = made.media.positions[:, 2:-1]
    assert set(time.tolist()) == {2}
    assert rows.tolist() == [2 + i for i in range(7) for _ in range(8)]
    assert columns.tolist() == [2 + i for _ in range(7) for i in range(8)]
    assert made.media.positions[:, -1].tolist() == [10] * 3
    assert made.media.position_delta == 11 - len(made.token_ids)


def test_video_positions_count_pairs_of_frames() -> None:
    made = processor()([515, 3], {"video": pixels(41, 400, 400)})
    assert made.media is not None
    assert made.media.positions is not None
    [item] = made.media.items
    frames, height, width = item.tensors["grid_thw"].tolist()
    assert frames == 21  # an odd frame is repeated
    assert made.media.positions[0, -2] == 20
    assert made.media.positions[0, -1] == max(21, height // 2, width // 2)


def test_a_picture_and_a_video_of_it_differ_in_key_alone_where_pixels_are_alike() -> None:
    read = processor()
    one = pixels(400, 400)
    image = read([514], {"image": one}).media
    video = read([515], {"video": one[None]}).media
    assert image is not None
    assert video is not None
    assert image.items[0].key != video.items[0].key
    assert np.array_equal(image.items[0].tensors["pixel_values"], video.items[0].tensors["pixel_values"])


def request_with(media: Media, prompt_len: int, row: int = 0) -> Request:
    return Request("r", prompt_len, [1] * prompt_len, GREEDY, media=media, row=row)


def test_planner_places_the_part_of_an_item_that_a_chunk_reaches() -> None:
    item = MediaItem("image", {"x": np.zeros((1, 1))}, b"k" * 16, np.arange(3, 9))
    request = request_with(Media((item,)), 12)
    planner = MediaPlanner()
    request.num_computed = 5
    first = planner.plan([ScheduledRow(request, 0, 0, 5, False)])
    assert first is not None
    assert [key for key, _, _ in first.encode] == [item.key]
    assert [(p.first, p.index.tolist()) for p in first.parts] == [(0, [3, 4])]
    assert first.freed == ()
    other = request_with(Media(), 4, row=1)
    request.num_computed = 12
    second = planner.plan([ScheduledRow(other, 1, 0, 4, True), ScheduledRow(request, 0, 5, 7, True)])
    assert second is not None
    assert second.encode == ()
    assert [(p.first, p.index.tolist()) for p in second.parts] == [(2, [4, 5, 6, 7])]
    assert second.freed == (item.key,)
    assert planner.plan([ScheduledRow(request, 0, 12, 1, True)]) is None


def test_page_keys_tell_pictures_and_places_apart() -> None:
    def keys(key: bytes, first: int) -> list[bytes]:
        media = Media((MediaItem("image", {}, key, np.arange(first, first + 6)),))
        return [media.page_keys(start, start + 4) for start in range(0, 12, 4)]

    assert keys(b"a" * 16, 5)[0] == b""
    assert keys(b"a" * 16, 5)[1:] != keys(b"b" * 16, 5)[1:]
    assert keys(b"a" * 16, 5)[1] != keys(b"a" * 16, 6)[1]
    assert all(keys(b"a" * 16, 5)[1:])


def test_rope_positions_of_decode_steps_have_one_axis() -> None:
    positions = np.arange(6).reshape(1, 6).repeat(3, 0)
    request = request_with(Media((), positions, -2), 6)
    plain = request_with(Media(), 6, row=1)
    plain.media = None
    rows = [ScheduledRow(plain, 1, 8, 1, True), ScheduledRow(request, 0, 9, 1, True)]
    found = rope_positions(rows, np.array([8, 9]))
    assert found is not None
    assert found.tolist() == [8, 7]
    rows = [ScheduledRow(plain, 1, 8, 1, True), ScheduledRow(request, 0, 4, 4, True)]
    found = rope_positions(rows, np.array([8, 4, 5, 6, 7]))
    assert found is not None
    assert found.tolist() == [[8, 4, 5, 4, 5]] * 3
    assert rope_positions(rows[:1], np.array([8])) is None


def test_compiled_and_eager_steps_say_the_same(requests: list[Any], expected: list[list[int]]) -> None:
    """Decode steps with pictures run eagerly beside compiled ones of text."""
    torch.manual_seed(0)
    llm = LLM(MODEL, device="cpu", warm="full", max_num_batched_tokens=32, max_num_seqs=4)
    assert tokens(llm, requests) == expected
    assert tokens(llm, [requests[0]]) == expected[:1]
