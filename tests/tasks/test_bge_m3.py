"""BGE-M3: rankings, packed steps padded and not, published files, its limits, and what `generate` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastkernels.cli.generate import generate
from fastkernels.engine.pipeline import Pipeline
from fastkernels.engine.runners.packed import PackedRunner
from fastkernels.errors import CheckpointError, UnsupportedError, UsageError
from fastkernels.oracles.bge_m3 import ORACLE
from fastkernels.oracles.our_side import our_side
from fastkernels.pipelines.bge_m3 import Embedding, multi_vector_score, sparse_score
from fastkernels.registry import architecture
from fastkernels.workloads import prompts

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline("tiny-bge_m3", device="cpu", seed=1)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """An oracle's model, and its checkpoint with the heads in files of their own."""
    folder = tmp_path_factory.mktemp("published")
    model = ORACLE.build(ORACLE.tiny()["published files"], seed=23)
    ORACLE.save(model, folder)
    return model, folder


def test_rankings_equal_those_of_the_oracle(published: tuple[Any, Path]) -> None:
    model, folder = published
    generator = torch.Generator().manual_seed(0)
    lengths = [4, 90, 17, 33, 8, 150, 61, 12]
    requests = [{"input_ids": [0, *torch.randint(5, 60, (n,), generator=generator).tolist(), 2]} for n in lengths]
    ours = Pipeline(folder, device="cpu").run(requests)
    theirs = [ORACLE.answer(model, request) for request in requests]
    for query in range(3):
        scores = {
            "dense": [float(one.tensors["dense_vecs"] @ ours[query].tensors["dense_vecs"]) for one in ours],
            "sparse": [sparse_score(ours[query].lexical_weights, one.lexical_weights) for one in ours],
            "multi": [
                multi_vector_score(ours[query].tensors["colbert_vecs"], one.tensors["colbert_vecs"]) for one in ours
            ],
        }
        words = [dict(zip(t["lexical_token_ids"].tolist(), t["lexical_weights"].tolist(), strict=True)) for t in theirs]
        expected = {
            "dense": [float(t["dense_vecs"] @ theirs[query]["dense_vecs"]) for t in theirs],
            "sparse": [sum(w * t.get(word, 0.0) for word, w in words[query].items()) for t in words],
            "multi": [
                float((theirs[query]["colbert_vecs"] @ t["colbert_vecs"].T).max(-1).values.mean()) for t in theirs
            ],
        }
        for kind, found in scores.items():
            assert np.allclose(found, expected[kind], rtol=1e-4, atol=1e-5), kind
            assert np.argsort(found).tolist() == np.argsort(expected[kind]).tolist(), kind


def test_texts_of_unlike_lengths_share_a_step_without_padding(pipeline: Pipeline) -> None:
    texts = list(prompts())[:7]
    requests: list[dict[str, Any]] = [{"text": text[: 5 + 40 * i]} for i, text in enumerate(texts)]
    seen: list[int] = []
    handle = pipeline.model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    try:
        together = pipeline.run(requests)
        assert seen == [sum(one.num_tokens for one in together)], "One step, a row a token."
        alone = [pipeline.run([request])[0] for request in requests]
    finally:
        handle.remove()
    for one, other in zip(together, alone, strict=True):
        for name, tensor in other.tensors.items():
            assert torch.allclose(one.tensors[name], tensor, rtol=1e-4, atol=1e-6), name


def test_steps_hold_as_many_texts_as_their_tokens_allow(pipeline: Pipeline) -> None:
    requests = [{"input_ids": [5] * n} for n in (10, 6, 4, 30, 1, 19)]
    runner = PackedRunner(pipeline.adapter, CPU, max_num_batched_tokens=20)
    states = [runner.start(request)[0] for request in requests]
    taken = []
    while states:
        taken.append(runner.num_in_step(states))
        states = states[taken[-1] :]
    assert taken == [3, 1, 2]
    small = Pipeline("tiny-bge_m3", device="cpu", max_num_batched_tokens=20)
    before = small.core.num_steps
    results = small.run(requests)
    assert small.core.num_steps - before == 3
    assert [one.num_tokens for one in results] == [10, 6, 4, 30, 1, 19]


def test_a_run_of_any_length_holds_few_prepared_requests() -> None:
    """A prepared clip or picture takes tens of megabytes, some of them on a GPU."""
    pipeline = Pipeline("tiny-bge_m3", device="cpu", seed=1, max_batch=16)
    held: list[int] = []
    lengths = [1 + i % 3 for i in range(pipeline.core.max_num_waiting + 1)]
    requests = [{"input_ids": [5] * n} for n in lengths]
    results = pipeline.run(requests, lambda done, most: held.append(pipeline.core.num_unfinished))
    assert [one.num_tokens for one in results] == lengths
    assert max(held) < 64
    with pytest.raises(UsageError):
        pipeline.run([*requests[:100], {"input_ids": "none"}])
    assert not pipeline.core.has_unfinished
    assert [one.num_tokens for one in pipeline.run(requests[:2])] == [1, 2]


def test_padded_steps_answer_as_others(pipeline: Pipeline) -> None:
    """What a GPU runs: rows, texts and the longest length rounded up."""
    requests = [{"input_ids": list(range(5, 5 + n))} for n in (1, 40, 7, 66, 3)]
    answers = []
    for pads in (True, False):
        runner = PackedRunner(pipeline.adapter, CPU, pads=pads)
        seen: list[tuple[int, int, int]] = []
        handle = pipeline.model.register_forward_pre_hook(
            lambda _, given, seen=seen: seen.append((len(given[0]), len(given[2]), given[3]))
        )
        states = runner.advance([runner.start(request)[0] for request in requests], [0] * 5)
        handle.remove()
        assert seen == [(128, 9, 128) if pads else (117, 6, 66)]
        answers.append([runner.finish(state) for state in states])
    for padded, plain in zip(*answers, strict=True):
        for name, tensor in plain.tensors.items():
            assert torch.allclose(padded.tensors[name], tensor, rtol=1e-4, atol=1e-6), name


@pytest.mark.gpu
def test_graphs_answer_bit_for_bit_as_eager_padded_steps() -> None:
    steps = [[900, 300, 40], [870, 330, 60], [1000, 150, 7], [30], [64], [5], [910, 320, 1]]
    answers = []
    for enforce_eager in (False, True):
        given = Pipeline("tiny-bge_m3", device="cuda", seed=1, enforce_eager=enforce_eager)
        found = [given.run([{"input_ids": [5 + i % 400 for i in range(n)]} for n in lens]) for lens in steps]
        assert given.core.runner.num_graph_steps == (0 if enforce_eager else 5)  # type: ignore[attr-defined]
        answers.append([one for results in found for one in results])
    for graph, eager in zip(*answers, strict=True):
        assert all(torch.equal(graph.tensors[name], eager.tensors[name]) for name in eager.tensors)


def test_the_measured_forward_is_the_engines_padded_step(tmp_path: Path) -> None:
    model = ORACLE.build(ORACLE.tiny()["published files"], seed=3)
    config, load = ORACLE.save_config(model, tmp_path), ORACLE.loads[0]
    side = our_side(architecture("bge_m3"), ORACLE, {}, config, "float32", CPU)
    requests = [{"input_ids": list(range(5, 5 + n))} for n in (1, 40, 30)]
    plain = side.call(load, requests)()
    seen: list[int] = []
    side.model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    side.pipeline.core.runner.pads = True  # type: ignore[attr-defined]
    padded = side.call(load, requests)()
    assert seen == [128]
    assert (len(padded["dense_vecs"]), len(padded["colbert_vecs"])) == (3, 71)
    for name, tensor in plain.items():
        assert torch.allclose(padded[name], tensor, rtol=1e-4, atol=1e-6), name


def test_a_text_of_8192_tokens_and_one_of_a_single_token(tmp_path: Path) -> None:
    preset = json.loads(Path("fastkernels/engine/presets/tiny-bge_m3.json").read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(preset | {"max_position_embeddings": 8194, "num_hidden_layers": 1, "hidden_size": 32}))
    long = Pipeline(path, device="cpu")
    one, other = long.run([{"input_ids": [7]}, {"input_ids": [i % 500 for i in range(8192)]}])
    assert (one.num_tokens, tuple(one.tensors["colbert_vecs"].shape)) == (1, (0, 32))
    assert (other.num_tokens, tuple(other.tensors["colbert_vecs"].shape)) == (8192, (8191, 32))
    for found in (one, other):
        assert float(found.tensors["dense_vecs"].norm()) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(UsageError, match="has 8193 tokens; the model takes 8192"):
        long.run([{"input_ids": [5] * 8193}])


def test_a_word_weighs_as_its_heaviest_token_and_ends_weigh_nothing(pipeline: Pipeline) -> None:
    [found] = pipeline.run([{"text": "to be or not to be, that is the question, to be"}])
    state = pipeline.adapter.prepare({"text": "to be or not to be, that is the question, to be"})
    starts = torch.tensor([0, len(state["input_ids"])], dtype=torch.int32)
    with torch.no_grad():
        weights = pipeline.adapter.forward_packed(state, starts, len(state["input_ids"]))["token_weights"]
    ids = state["input_ids"].tolist()
    assert (ids[0], ids[-1]) == (512, 513)
    wanted = {
        token: max(float(w) for t, w in zip(ids, weights, strict=True) if t == token)
        for token in set(ids) - {512, 513, 1}
    }
    assert found.lexical_weights == pytest.approx({t: w for t, w in wanted.items() if w > 0}, rel=1e-5)
    assert 5 < len(found.lexical_weights) < len(ids) - 2


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({}, "has 'text' or 'input_ids', got nothing"),
        ({"text": 3}, "has 'text' or 'input_ids', got text"),
        ({"input_ids": []}, "at least one"),
        ({"input_ids": [514]}, r"in \[0, 514\), at least one; got 514 to 514"),
        ({"input_ids": [-1]}, "got -1 to -1"),
        ({"input_ids": [[1, 2]]}, r"got \[1, 2\]"),
        ({"input_ids": ["a"]}, "is a list of token ids"),
        ({"text": "word " * 2000}, "the model takes 1024. Nothing is cut off here"),
    ],
)
def test_what_is_no_text_is_refused(pipeline: Pipeline, request_: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        pipeline.run([request_])


def test_published_files_are_read_in_either_form(published: tuple[Any, Path], tmp_path: Path) -> None:
    """pytorch_model.bin alone, as the first publication has it, gives what model.safetensors gives."""
    _, folder = published
    for name in ("config.json", "colbert_linear.pt", "sparse_linear.pt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    request = {"input_ids": [0, 9, 8, 7, 2]}
    one, other = (Pipeline(path, device="cpu").run([request])[0] for path in (folder, tmp_path))
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_a_checkpoint_without_its_heads_or_with_code_in_them_is_refused(
    published: tuple[Any, Path], tmp_path: Path
) -> None:
    _, folder = published
    for name in ("config.json", "model.safetensors", "colbert_linear.pt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"2 missing: sparse_linear\.weight, sparse_linear\.bias"):
        Pipeline(tmp_path, device="cpu")
    torch.save({"weight": Path("/")}, tmp_path / "sparse_linear.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        Pipeline(tmp_path, device="cpu")
    (tmp_path / "sparse_linear.pt").write_bytes((folder / "sparse_linear.pt").read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is truncated"):
        Pipeline(tmp_path, device="cpu")
    torch.save([torch.zeros(2)], tmp_path / "sparse_linear.pt")
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        Pipeline(tmp_path, device="cpu")


def test_generate_writes_all_vectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "vectors.json"
    given = ["text=a bright cold day in April"]
    generate(model="tiny-bge_m3", given=given, out=out, device="cpu", seed=1, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    written = json.loads(out.read_text())
    assert len(written["dense_vecs"]) == 64
    assert shown["lexical_weights"] == written["lexical_weights"] != {}
    assert [len(written["colbert_vecs"]), 64] == shown["colbert_vecs"]["shape"]
    result = Embedding({"x": torch.zeros(1)}, (5,))
    with pytest.raises(UsageError, match=r"written as \.safetensors"):
        result.save(tmp_path / "vectors.png")
    with pytest.raises((UsageError, UnsupportedError), match=r"use LLM\.embed, .* with --input"):
        generate(model="tiny-bge_m3", prompt=["a"], device="cpu")
