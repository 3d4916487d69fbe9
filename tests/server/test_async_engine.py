"""The engine behind its process border: same tokens, and every way it can end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from waiting import wait_until

from fastkernels.engine.client import AsyncEngine, EngineDeadError, EngineStartError, OverloadedError
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.core import EngineCore
from fastkernels.engine.output_processor import OutputKind, OutputProcessor
from fastkernels.engine.outputs import EncodedResult, EngineInfo, FinishReason, RequestOutput
from fastkernels.engine.process import Channel, EngineLoop
from fastkernels.engine.sampling_params import SamplingParams, SamplingParamsError
from fastkernels.engine.task_client import AsyncTaskEngine
from fastkernels.engine.task_output import TaskOutput
from fastkernels.errors import UnsupportedError
from fastkernels.workloads import byte_tokenizer

CONFIG = EngineConfig("tiny-llama", device="fake")
PARAMS = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


def with_engine(
    test: Callable[[AsyncEngine], Awaitable[None]], config: EngineConfig = CONFIG, observer: object = None
) -> None:
    async def run() -> None:
        engine = await AsyncEngine.start(config, observer)  # type: ignore[arg-type]
        try:
            await asyncio.wait_for(test(engine), 30)
        finally:
            await engine.close()
        assert engine.process.poll() is not None

    asyncio.run(run())


async def collect(outputs: AsyncIterator[RequestOutput]) -> list[RequestOutput]:
    return [output async for output in outputs]


def test_tokens_are_those_of_the_engine_in_this_process() -> None:
    prompts = [[5 + i, 7, 9] for i in range(20)]
    core = EngineCore(CONFIG)
    processor = OutputProcessor(core.tokenizer)
    for i, prompt in enumerate(prompts):
        for request in processor.add(str(i), None, prompt, PARAMS):
            core.add(request)
    here: dict[str, RequestOutput] = {}
    while core.has_unfinished:
        outputs, _ = processor.process(core.step(), only_finished=True)
        here |= {output.request_id: output for output in outputs}
    core.close()

    async def there(engine: AsyncEngine) -> None:
        answers = await asyncio.gather(
            *(collect(engine.generate(p, PARAMS, str(i), OutputKind.FINAL_ONLY)) for i, p in enumerate(prompts))
        )
        for i, (answer,) in enumerate(answers):
            assert answer.outputs[0].token_ids == here[str(i)].outputs[0].token_ids
            assert answer.outputs[0].text == here[str(i)].outputs[0].text

    with_engine(there)


def test_deltas_together_are_the_cumulative_text() -> None:
    async def check(engine: AsyncEngine) -> None:
        whole = (await collect(engine.generate("Hello", PARAMS, "a")))[-1].outputs[0]
        deltas = await collect(engine.generate("Hello", PARAMS, "b", OutputKind.DELTA))
        assert "".join(delta.outputs[0].text for delta in deltas) == whole.text
        assert sum((delta.outputs[0].token_ids for delta in deltas), ()) == whole.token_ids

    with_engine(check)


def test_what_cannot_run_is_refused_by_name_and_the_engine_goes_on() -> None:
    async def check(engine: AsyncEngine) -> None:
        with pytest.raises(UnsupportedError, match="600"):
            await collect(engine.generate([5], replace(PARAMS, max_tokens=600), "a"))
        with pytest.raises(SamplingParamsError, match="999") as caught:
            await collect(engine.generate([5], replace(PARAMS, stop_token_ids=(999,)), "b"))
        assert caught.value.parameter == "stop_token_ids"
        assert engine.num_unfinished == engine.num_waiting == 0
        assert (await collect(engine.generate([5], PARAMS, "c")))[-1].finished

    with_engine(check)


def test_leaving_a_request_frees_its_pages() -> None:
    async def check(engine: AsyncEngine) -> None:
        for i in range(20):
            outputs = engine.generate([5, i], replace(PARAMS, max_tokens=400, n=2), f"r{i}")
            async with contextlib.aclosing(outputs):
                async for _ in outputs:
                    break
        assert engine.num_unfinished == engine.num_waiting == 0
        for _ in range(100):
            stats = await engine.stats()
            if not stats.num_running and not stats.num_waiting:
                break
        assert stats.num_free_pages == engine.info.num_pages
        assert stats.num_generated_tokens < 20 * 2 * 400

    with_engine(check)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5, 40])
def test_an_aborts_pages_are_back_within_two_steps(num_steps: int) -> None:
    """Waiting, in the prompt (3 steps of 16 tokens), among the tokens: whatever the phase."""
    core = EngineCore(replace(CONFIG, max_num_batched_tokens=16, enable_prefix_caching=False))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop = EngineLoop(core, Channel(theirs))
        for request in OutputProcessor(core.tokenizer).add("a", None, [5] * 40, replace(PARAMS, max_tokens=100, n=2)):
            loop.handle(("add", [request]))
        for _ in range(num_steps):
            core.step()
        assert num_steps == 0 or core.stats().num_free_pages < core.info.num_pages
        loop.handle(("abort", ["a#0", "a#1"]))
        core.step()
        core.step()
        assert core.stats().num_free_pages == core.info.num_pages
        assert not core.has_unfinished
    core.close()


def test_abort_ends_the_reader_with_what_there_is() -> None:
    async def check(engine: AsyncEngine) -> None:
        outputs = engine.generate([5], replace(PARAMS, max_tokens=500), "a")
        await anext(outputs)
        assert engine.abort(["a", "unknown"]) == ["a"]
        rest = await collect(outputs)
        assert rest[-1].outputs[0].finish_reason is FinishReason.ABORT

    with_engine(check)


def test_an_id_that_comes_again_takes_nothing_of_the_request_before() -> None:
    """Each call is left early: at a stop text the engine goes on for steps whose outputs still come."""
    prompts = [[5 + i, 7, 9] for i in range(8)]
    long = replace(PARAMS, max_tokens=300)

    async def check(engine: AsyncEngine) -> None:
        async def answer(prompt: list[int], params: SamplingParams, name: str) -> RequestOutput:
            return (await collect(engine.generate(prompt, params, name, OutputKind.FINAL_ONLY)))[-1]

        alone = [await answer(prompt, PARAMS, str(i)) for i, prompt in enumerate(prompts)]
        for prompt, expected in zip(prompts * 5, alone * 5, strict=True):
            stop = expected.outputs[0].text[2:5]
            stopped = await answer(prompt, replace(long, stop=(stop,)), "same")
            assert stopped.outputs[0].stop_reason == stop
            left = engine.generate(prompt, long, "same")
            await anext(left)
            await left.aclose()
        both = await asyncio.gather(*(answer(prompt, PARAMS, "same") for prompt in prompts))
        assert [one.outputs[0].token_ids for one in both] == [one.outputs[0].token_ids for one in alone]
        assert {one.request_id for one in both} == {"same"}
        outputs = [engine.generate(prompt, long, "same") for prompt in prompts]
        await asyncio.gather(*(anext(one) for one in outputs))
        assert engine.abort(["same", "unknown"]) == ["same"]
        ends = [(await collect(one))[-1].outputs[0].finish_reason for one in outputs]
        assert ends == [FinishReason.ABORT] * len(prompts)
        assert engine.abort(["same"]) == []

    with_engine(check)


def test_results_of_a_task_that_was_left_are_not_those_of_the_next_with_its_id() -> None:
    """The engine's end is played by hand."""
    info = EngineInfo("m", "float32", "cpu", 0, 0, frozenset(), 0, 16, 64, 0, 1, 0.0)

    def result(engine_id: str, text: str) -> TaskOutput:
        return TaskOutput(engine_id, 1, 1, FinishReason.STOP, EncodedResult("text/plain", text.encode(), {}))

    async def run() -> None:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        process: Any = SimpleNamespace(poll=lambda: None)
        engine = AsyncTaskEngine(CONFIG, process, (reader, writer), (info, byte_tokenizer().to_str()), None)
        channel = Channel(theirs)

        async def asked(*names: str) -> tuple[list[asyncio.Task[Any]], list[str]]:
            tasks = [asyncio.create_task(engine.run({}, name)) for name in names]
            await asyncio.sleep(0.01)
            sent = [rest for kind, *rest in channel.receive(may_block=False) if kind == "add"]
            return tasks, [request.request_id for (requests,) in sent for request in requests]

        (left,), (old,) = await asked("same")
        left.cancel()
        (task,), (new,) = await asked("same")
        engine._on_outputs([result(old, "old"), result(new, "new")])
        assert (await task).content == b"new"
        tasks, _ = await asked("same", "same", "other")
        assert engine.abort(["same"]) == ["same"]
        assert [await one for one in tasks[:2]] == [None, None]
        assert engine.num_unfinished == 1
        assert engine.abort(["same", "other"]) == ["other"]
        await asyncio.gather(*tasks)
        theirs.close()
        process.poll = lambda: 0
        await engine.close()

    asyncio.run(run())


def test_more_than_may_wait_are_refused() -> None:
    async def check(engine: AsyncEngine) -> None:
        tasks = [asyncio.create_task(collect(engine.generate([5], PARAMS, str(i)))) for i in range(3)]
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(one, OverloadedError) for one in done] == [False, False, True]
        with pytest.raises(UnsupportedError, match="max_num_waiting"):
            await collect(engine.generate([5], replace(PARAMS, n=3), "n"))
        assert engine.num_waiting == 0

    with_engine(check, replace(CONFIG, max_num_waiting=2))


def test_an_embedding_has_length_one() -> None:
    async def check(engine: AsyncEngine) -> None:
        output = await engine.embed("Hello", "a")
        assert sum(x * x for x in output.embedding or ()) == pytest.approx(1)

    with_engine(check)


def test_a_killed_process_fails_what_runs_and_what_comes() -> None:
    async def check(engine: AsyncEngine) -> None:
        running = asyncio.create_task(collect(engine.generate([5], replace(PARAMS, max_tokens=500), "a")))
        await asyncio.sleep(0)
        engine.process.kill()
        with pytest.raises(EngineDeadError, match="signal 9"):
            await running
        assert engine.died.is_set()
        assert not engine.is_alive
        with pytest.raises(EngineDeadError):
            await collect(engine.generate([5], PARAMS, "b"))
        with pytest.raises(EngineDeadError):
            await engine.stats()

    with_engine(check)


def test_close_leaves_no_process_behind() -> None:
    seen: list[psutil.Process] = []

    async def check(engine: AsyncEngine) -> None:
        seen.append(psutil.Process(engine.process.pid))
        running = asyncio.create_task(collect(engine.generate([5], replace(PARAMS, max_tokens=500), "a")))
        await asyncio.sleep(0)
        await engine.close()
        with pytest.raises(EngineDeadError, match="shutting down"):
            await running

    with_engine(check)
    wait_until(lambda: not seen[0].is_running())


def test_a_configuration_that_cannot_be_built_is_told_with_its_exit_code() -> None:
    with pytest.raises(EngineStartError, match="no-such-model") as caught:
        asyncio.run(AsyncEngine.start(EngineConfig("no-such-model", device="fake")))
    assert caught.value.exit_code == 2


def test_the_observer_hears_of_every_step_with_tokens() -> None:
    class Heard:
        firsts = nexts = 0

        def first_token(self, seconds: float) -> None:
            assert 0 <= seconds < 30
            self.firsts += 1

        def next_token(self, seconds: float) -> None:
            self.nexts += 1

    heard = Heard()

    async def check(engine: AsyncEngine) -> None:
        await collect(engine.generate([5], PARAMS, "a", OutputKind.FINAL_ONLY))
        assert heard.firsts == 1
        assert 0 < heard.nexts < PARAMS.max_tokens

    with_engine(check, observer=heard)


@pytest.mark.parametrize("texts", [["word"] * 300, ["word " * 3000] * 3], ids=["many", "long"])
def test_many_texts_are_encoded_beside_the_event_loop(texts: list[str]) -> None:
    async def test(engine: AsyncEngine) -> None:
        tokenizer, threads = engine.tokenizer, []

        def encode_batch(part: list[str], **given: Any) -> Any:
            threads.append(threading.current_thread())
            return tokenizer.encode_batch(part, **given)

        engine.tokenizer = SimpleNamespace(encode_batch=encode_batch)  # type: ignore[assignment]
        assert await engine.encode_all(texts) == [tokenizer.encode(text).ids for text in texts]
        assert threads
        assert threading.main_thread() not in threads

    with_engine(test)
