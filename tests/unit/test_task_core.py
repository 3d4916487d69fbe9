"""Requests of one step and of N: batched by shape, the same results as alone."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastkernels.engine import task_engine
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.outputs import FinishReason
from fastkernels.engine.pipeline import Pipeline
from fastkernels.engine.process import Channel, EngineLoop
from fastkernels.engine.runners.iterative import IterativeRunner
from fastkernels.engine.runners.replay import State
from fastkernels.engine.runners.single_pass import SinglePassRunner
from fastkernels.engine.task_core import TaskCore, TaskOutput, TaskRequest
from fastkernels.errors import UnsupportedError, UsageError
from fastkernels.registry import Kind

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Classifier:
    """Scores of an image."""

    def __init__(self, device: str) -> None:
        self.weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).to(device)
        self.batches: list[int] = []

    def prepare(self, inputs: Mapping[str, Any]) -> State:
        return {"image": inputs["image"].to(self.weight.device)}

    def forward(self, batch: State) -> State:
        self.batches.append(len(batch["image"]))
        return {"scores": batch["image"].mean((-1, -2)) @ self.weight.T}

    def finish(self, result: State) -> list[float]:
        return result["scores"].tolist()


class Denoiser:
    """x <- x - rate(step) * (x - target), over as many steps as a request asks for."""

    def __init__(self, device: str) -> None:
        self.rates = torch.linspace(0.1, 0.9, 16, device=device)
        self.batches: list[int] = []

    def prepare(self, inputs: Mapping[str, Any]) -> State:
        generator = torch.Generator().manual_seed(inputs["seed"])
        noise = torch.randn(inputs["size"], generator=generator).to(self.rates.device)
        return {"x": noise, "target": torch.full_like(noise, inputs["target"])}

    def num_steps(self, inputs: Mapping[str, Any]) -> int:
        return inputs["num_steps"]

    def advance(self, batch: State, step: Tensor) -> State:
        self.batches.append(len(step))
        rate = self.rates[step][:, None]
        return {"x": batch["x"] - rate * (batch["x"] - batch["target"]), "target": batch["target"]}

    def finish(self, state: State) -> Tensor:
        return state["x"].cpu()


def run(core: TaskCore, requests: list[TaskRequest]) -> dict[str, TaskOutput]:
    for request in requests:
        core.add(request)
    last = {}
    while core.has_unfinished:
        for output in core.step():
            last[output.request_id] = output
    return last


@pytest.mark.parametrize("device", DEVICES)
def test_images_of_one_shape_share_a_batch_and_score_as_alone(device: str) -> None:
    model = Classifier(device)
    core = TaskCore(SinglePassRunner(model, torch.device(device)), max_batch=4)
    sizes = [(8, 8), (8, 8), (5, 9), (8, 8), (5, 9), (8, 8), (8, 8)]
    images = [torch.rand(3, *size, generator=torch.Generator().manual_seed(i)) for i, size in enumerate(sizes)]
    found = run(core, [TaskRequest(str(i), {"image": image}) for i, image in enumerate(images)])
    assert core.num_steps == 3, "4 of the first shape, 2 of the second, the fifth of the first."
    for i, image in enumerate(images):
        alone = image.mean((-1, -2)) @ model.weight.cpu().T
        assert found[str(i)].result == pytest.approx(alone.tolist(), abs=1e-5)
        assert found[str(i)].finish_reason is FinishReason.STOP


class EncodingDenoiser(Denoiser):
    """Its target is half of what is encoded, once."""

    encoded = ("words",)

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.encodings: list[int] = []

    def prepare(self, inputs: Mapping[str, Any]) -> State:
        state = super().prepare(inputs)
        return {"x": state["x"], "words": 2 * state["target"]}

    def encode(self, batch: State) -> State:
        assert set(batch) == {"words"}
        self.encodings.append(len(batch["words"]))
        return {"target": batch["words"] / 2}


def denoised(model: Denoiser, inputs: Mapping[str, Any]) -> Tensor:
    state = model.prepare(inputs)
    x = state["x"]
    for step in range(inputs["num_steps"]):
        x = x - model.rates[step] * (x - state["target"])
    return x.cpu()


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_encoded_once_is_so_in_a_batch_of_those_that_are_new(device: str) -> None:
    """On a GPU the others that a batch is padded with are encoded, too, and by graphs from the second time on."""
    model, plain = EncodingDenoiser(device), Denoiser(device)
    core = TaskCore(IterativeRunner(model, torch.device(device)), max_batch=8)
    inputs = [{"seed": i, "size": 6, "target": float(i), "num_steps": n} for i, n in enumerate((4, 9, 1, 5, 3))]
    for i in (0, 1):
        core.add(TaskRequest(str(i), inputs[i]))
    core.step()
    found = run(core, [TaskRequest(str(i), inputs[i]) for i in (2, 3, 4)])
    assert device != "cpu" or model.encodings == [2, 3]
    for i in range(1, 5):
        assert found[str(i)].result == pytest.approx(denoised(plain, inputs[i]), abs=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_requests_at_unlike_steps_share_a_batch(device: str) -> None:
    model = Denoiser(device)
    core = TaskCore(IterativeRunner(model, torch.device(device)), max_batch=8)
    inputs = [{"seed": i, "size": 6, "target": float(i), "num_steps": n} for i, n in enumerate((4, 9, 1, 16))]
    core.add(TaskRequest("0", inputs[0]))
    first = core.step()
    assert [(o.step, o.num_steps, o.finish_reason) for o in first] == [(1, 4, None)]
    found = run(core, [TaskRequest(str(i), given) for i, given in enumerate(inputs) if i])
    assert core.num_steps == 1 + 16, "A late one joins what is under way."
    for i, given in enumerate(inputs):
        assert torch.allclose(found[str(i)].result, denoised(model, given), atol=1e-5)


def test_abort_takes_a_request_out_of_its_batch() -> None:
    core = TaskCore(IterativeRunner(Denoiser("cpu"), torch.device("cpu")))
    for i in range(2):
        core.add(TaskRequest(str(i), {"seed": i, "size": 3, "target": 0.0, "num_steps": 5}))
    core.step()
    core.abort(["0", "unknown"])
    outputs = core.step()
    assert {(o.request_id, o.finish_reason) for o in outputs} == {("0", FinishReason.ABORT), ("1", None)}


def test_limits_are_named() -> None:
    runner = IterativeRunner(Denoiser("cpu"), torch.device("cpu"))
    with pytest.raises(UsageError, match="max_batch is 0"):
        TaskCore(runner, max_batch=0)
    core = TaskCore(runner, max_num_waiting=1)
    wrong = {"seed": 0, "size": 3, "target": 0.0, "num_steps": 0}
    with pytest.raises(UnsupportedError, match="asks for 0 steps"):
        core.add(TaskRequest("a", wrong))
    core.add(TaskRequest("b", {**wrong, "num_steps": 1}))
    with pytest.raises(UnsupportedError, match="max_num_waiting is 1"):
        core.add(TaskRequest("c", {**wrong, "num_steps": 1}))


def test_requests_that_have_begun_do_not_wait() -> None:
    core = TaskCore(IterativeRunner(Denoiser("cpu"), torch.device("cpu")), max_num_waiting=1)
    asked = {"seed": 0, "size": 3, "target": 0.0, "num_steps": 3}
    for name in "ab":
        core.add(TaskRequest(name, asked))
        core.step()
    assert core.num_unfinished == 2


class Crowded(Classifier):
    """Its memory holds 5 images at once, and none that is 3 pixels high."""

    def forward(self, batch: State) -> State:
        result = super().forward(batch)
        if len(batch["image"]) > 5 or batch["image"].shape[-2] == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return result


def crowd(num: int, height: int) -> list[TaskRequest]:
    return [TaskRequest(f"{height} {i}", {"image": torch.rand(3, height, 4)}) for i in range(num)]


def test_a_servers_batch_that_does_not_fit_into_memory_is_made_smaller(caplog: pytest.LogCaptureFixture) -> None:
    model = Crowded("cpu")
    core = TaskCore(SinglePassRunner(model, torch.device("cpu")), max_batch=64)
    core.isolates_errors = True
    found = run(core, [*crowd(20, height=6), *crowd(4, height=7), *crowd(2, height=3)])
    assert model.batches == [20, 10, 5, 5, 5, 5, 4, 2, 1, 1], "Of one shape only; and none is tried anew."
    failed = {name for name, output in found.items() if output.finish_reason is FinishReason.ERROR}
    assert failed == {"3 0", "3 1"}, "What does not fit alone has no other way."
    assert "20 requests do not fit into memory together; 10 a step from now on." in caplog.messages
    run(core, crowd(20, height=6))
    assert model.batches[-4:] == [5] * 4


def test_offline_the_size_of_a_batch_is_the_callers() -> None:
    """A measurement of 20 at once is none of 5."""
    core = TaskCore(SinglePassRunner(Crowded("cpu"), torch.device("cpu")))
    with pytest.raises(torch.OutOfMemoryError):
        run(core, crowd(20, height=6))


def engine_of(model: Denoiser, monkeypatch: pytest.MonkeyPatch, **options: Any) -> task_engine.TaskEngine:
    pipeline = SimpleNamespace(
        core=TaskCore(IterativeRunner(model, torch.device("cpu"))),
        model=torch.nn.Linear(1, 1),
        name="denoiser",
        dtype=torch.float32,
        device=torch.device("cpu"),
        architecture=SimpleNamespace(kind=Kind.ITERATIVE),
        adapter=None,
    )
    monkeypatch.setattr(task_engine.Pipeline, "of", lambda config: pipeline)
    return task_engine.TaskEngine(EngineConfig("denoiser", device="cpu", **options))


def test_an_engine_of_tasks_lets_as_many_wait_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(Denoiser("cpu"), monkeypatch, max_num_waiting=3)
    asked = {"seed": 0, "size": 3, "target": 0.0, "num_steps": 1}
    for i in range(3):
        engine.add(TaskRequest(str(i), asked))
    with pytest.raises(UnsupportedError, match="max_num_waiting is 3"):
        engine.add(TaskRequest("3", asked))


class Breaking(Denoiser):
    """Its steps, and what it prepares, fail for requests of size 13; those of size 14 break the GPU for all."""

    broken = "CUDA error: an illegal memory access was encountered"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__("cpu")
        self.is_broken = False
        monkeypatch.setattr(torch.cuda, "synchronize", self.look)

    def look(self, device: torch.device) -> None:
        if self.is_broken:
            raise RuntimeError(self.broken)

    def fail(self, size: int) -> None:
        self.is_broken |= size == 14
        self.look(torch.device("cuda"))
        if size == 13:
            raise ValueError("13 is no size.")

    def prepare(self, inputs: Mapping[str, Any]) -> State:
        if inputs["num_steps"] == 2:
            self.fail(inputs["size"])
        return super().prepare(inputs)

    def advance(self, batch: State, step: Tensor) -> State:
        self.fail(batch["x"].shape[1])
        return super().advance(batch, step)


@pytest.mark.parametrize("num_steps", [1, 2], ids=["in_a_step", "in_prepare"])
def test_an_engine_of_tasks_ends_when_its_gpu_is_of_no_more_use(
    num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of one request ends that one; a GPU that answers nothing any more would fail all that come."""
    engine = engine_of(Breaking(monkeypatch), monkeypatch)
    engine.pipeline.device = torch.device("cuda")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop, parent = EngineLoop(engine, Channel(theirs)), Channel(ours)

        def told(size: int) -> list[tuple[Any, ...]]:
            asked = {"seed": 0, "size": size, "target": 0.0, "num_steps": num_steps}
            loop.handle(("add", [TaskRequest(str(size), asked)]))
            while engine.has_unfinished:
                loop.turn()
            return parent.receive(may_block=False)

        assert "13 is no size." in str(told(13))
        with pytest.raises(RuntimeError, match="illegal memory access"):
            told(14)


def sizes_of_steps(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    advance = pipeline.core.runner.advance
    monkeypatch.setattr(
        pipeline.core.runner, "advance", lambda states, steps: (sizes.append(len(states)), advance(states, steps))[1]
    )
    return sizes


@pytest.mark.parametrize(("max_num_seqs", "most"), [(64, 8), (3, 2)])
def test_a_warm_pipeline_has_seen_each_size_of_batch_twice(
    max_num_seqs: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time is the one that captures a graph."""
    config = EngineConfig("tiny-yolov10", device="cpu", max_num_seqs=max_num_seqs)
    pipeline = Pipeline.of(config)
    sizes = sizes_of_steps(pipeline, monkeypatch)
    pipeline.warm()
    assert sizes == [1, 1, 1, 1, *(size for size in (1, 2, 4, 8) if size <= most for _ in range(2))]
    warmed: list[Pipeline] = []
    monkeypatch.setattr(Pipeline, "warm", lambda self: warmed.append(self))
    assert [Pipeline.of(replace(config, warm=warm)) in warmed for warm in ("lazy", "full")] == [False, True]


def test_a_size_that_does_not_fit_into_memory_ends_the_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.of(EngineConfig("tiny-yolov10", device="cpu"))
    forward = pipeline.core.runner.advance

    def crowded(states: list[State], steps: list[int]) -> list[State]:
        if len(states) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(states, steps)

    monkeypatch.setattr(pipeline.core.runner, "advance", crowded)
    pipeline.warm()
    assert not pipeline.core.has_unfinished
    assert len(pipeline.run(pipeline.example_requests(2))) == 2


@pytest.mark.parametrize("name", ["num_pages", "max_model_len"])
def test_a_pipeline_refuses_what_only_a_cache_heeds(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{name} is 64; a model that makes no tokens keeps no cache"):
        Pipeline.of(EngineConfig("tiny-yolov10", device="cpu", **{name: 64}))
