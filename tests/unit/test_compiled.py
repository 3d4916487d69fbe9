"""Compiled decode steps on a CPU: the tokens of eager ones, and the two operators in C++ against the definition."""

from __future__ import annotations

import ctypes
import gc
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forks
from torch import Tensor

from fastkernels.cache import CacheKind, cached_layers
from fastkernels.engine import compiled, step_library
from fastkernels.engine.compiled import compiled_steps
from fastkernels.engine.llm import LLM
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.errors import EnvironmentProblem
from fastkernels.kernels import paged_cpu
from fastkernels.tasks.baseline.L1.flash_attn_decode import FlashAttnDecode
from fastkernels.tasks.baseline.L1.store_kvcache import StoreKVCache

pytest.importorskip("torch._inductor.cpp_builder")
pytestmark = pytest.mark.slow

PROMPTS = [[5, 9, 17], [(7 * i) % 500 + 2 for i in range(28)], [3], [11] * 16, [400, 2, 77, 30, 8]]
COMPILED: dict[str, Any] = {"num_pages": 64, "max_num_seqs": 8, "warm": "full"}
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


def make_llm(**options: object) -> LLM:
    return LLM("tiny-llama", device="cpu", enable_prefix_caching=False, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where steps are kept: what was compiled before these tests stands in for nothing. As long as `compiled_llm`."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module", autouse=True)
def _keeps_steps_there(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(step_library, "kept_folder", lambda: folder)
        yield


@cache
def compiled_llm() -> LLM:
    llm = make_llm(**COMPILED)
    pages = [layer.kv_cache for layer in cached_layers(llm.core.executor.model)]  # type: ignore[attr-defined]
    assert pages
    assert not any(bool(page.any()) for page in pages)  # warming up leaves them untouched
    return llm


@cache
def eager_tokens() -> list[list[int]]:
    """Of each prompt alone."""
    llm = make_llm(num_pages=64)
    return [tokens(llm, GREEDY, [prompt])[0] for prompt in PROMPTS]


def tokens(llm: LLM, params: SamplingParams | list[SamplingParams], prompts: list[list[int]]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params)]


def num_compiled_steps(llm: LLM) -> int:
    return llm.core.stats().num_graph_steps


def test_compiled_steps_give_the_eager_tokens_for_any_number_of_rows() -> None:
    llm = compiled_llm()
    before = num_compiled_steps(llm)
    assert tokens(llm, GREEDY, PROMPTS) == eager_tokens()
    assert num_compiled_steps(llm) - before >= GREEDY.max_tokens - 2
    for prompt, expected in zip(PROMPTS, eager_tokens(), strict=True):
        assert tokens(llm, GREEDY, [prompt]) == [expected]


def test_a_step_that_was_compiled_before_is_found_by_its_graph(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """And one of other sizes, of another torch, or with another number in an op is compiled."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it is compiled again")

    def refuses(llm: LLM) -> None:
        with pytest.raises(EnvironmentProblem, match="compiled again"):
            compiled.CompiledSteps(llm.core.executor.runner, [CacheKind.FULL])  # type: ignore[attr-defined]

    compiled_llm()
    (kept,) = folder.iterdir()
    monkeypatch.setattr(torch._inductor, "aot_compile", fail)
    llm = make_llm(**COMPILED)
    assert tokens(llm, GREEDY, PROMPTS) == eager_tokens()
    assert num_compiled_steps(llm) >= GREEDY.max_tokens - 2
    refuses(make_llm(num_pages=65, max_num_seqs=8))
    with monkeypatch.context() as patched:
        patched.setattr(torch.version, "git_version", "another")
        refuses(llm)
    llm.core.executor.runner.model.model.norm.eps *= 2  # type: ignore[attr-defined]
    refuses(llm)
    assert [*folder.iterdir()] == [kept]


def test_requests_that_enter_and_leave_between_compiled_steps_keep_their_tokens() -> None:
    """More requests than rows, of unlike lengths: eager prompts come between compiled steps that are on their way."""
    chosen = [(i % len(PROMPTS), 3 + 7 * i % 38) for i in range(30)]
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for _, n in chosen]
    found = tokens(compiled_llm(), params, [PROMPTS[i] for i, _ in chosen])
    assert found == [eager_tokens()[i][:n] for i, n in chosen]
    compiled_llm().core.scheduler.check_invariants()


def test_drawn_tokens_and_log_probabilities_come_from_compiled_logits() -> None:
    params = [SamplingParams(temperature=0.8, top_k=20, seed=i, max_tokens=12, logprobs=2) for i in range(len(PROMPTS))]
    before = num_compiled_steps(compiled_llm())
    found, expected = (llm.generate(PROMPTS, params) for llm in (compiled_llm(), make_llm()))
    assert num_compiled_steps(compiled_llm()) > before
    for one, other in zip(found, expected, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        pairs = zip(one.outputs[0].logprobs or (), other.outputs[0].logprobs or (), strict=True)
        for a, b in pairs:
            assert [p.logprob for p in a.values()] == pytest.approx([p.logprob for p in b.values()], abs=1e-4)


def test_steps_stay_eager_with_one_line_where_there_is_no_compiler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> None:
        raise EnvironmentProblem("No C++ compiler is here; install g++.")

    monkeypatch.setattr(step_library, "library", missing)
    with caplog.at_level(logging.WARNING):
        llm = make_llm(warm="full", max_num_batched_tokens=64)
    (record,) = [r for r in caplog.records if r.name == "fastkernels.engine.compiled"]
    assert "No C++ compiler is here" in record.getMessage()
    assert tokens(llm, GREEDY, PROMPTS) == eager_tokens()
    assert num_compiled_steps(llm) == 0


NOWHERE = """
import logging, os, sys
os.environ["TORCHINDUCTOR_CACHE_DIR"] = sys.argv[1]
from fastkernels.engine.llm import LLM
from fastkernels.engine.sampling_params import SamplingParams
logging.basicConfig(format="%(name)s %(message)s")
llm = LLM("tiny-llama", device="cpu", warm="full", max_num_batched_tokens=64, num_pages=64)
print(llm.generate([[5, 9, 17]], SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))[0].outputs[0].token_ids)
"""
"""A process of its own: torch looks for its folder when its modules are imported."""


@pytest.mark.parametrize("kind", ["file", "files"])
def test_steps_stay_eager_with_one_line_where_nothing_can_be_kept(forks: Forks, tmp_path: Path, kind: str) -> None:
    """Where the folder is a file, or cannot have one of ours within; permissions hold nothing from a superuser."""
    (tmp_path / "fastkernels").touch()
    folder = {"file": tmp_path / "fastkernels" / "cache", "files": tmp_path}[kind]
    done = forks.run(NOWHERE, [folder])
    assert done.out.strip() == str(eager_tokens()[0]), done.err
    (line,) = [one for one in done.err.splitlines() if one.startswith("fastkernels.engine.compiled")]
    assert "Decode steps stay eager" in line
    assert str(folder) in line
    assert "TORCHINDUCTOR_CACHE_DIR" in line


def test_models_with_states_stay_eager(caplog: pytest.LogCaptureFixture) -> None:
    runner = compiled_llm().core.executor.runner  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING):
        assert compiled_steps(runner, [CacheKind.FULL, CacheKind.CROSS]) is None
    assert len(caplog.records) == 1


def test_float16_stays_eager(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        llm = make_llm(warm="full", dtype="float16", max_num_batched_tokens=16)
    assert llm.core.executor.runner.compiled is None  # type: ignore[attr-defined]
    assert "float16" in caplog.text


def test_lazy_engines_compile_nothing() -> None:
    assert make_llm().core.executor.runner.compiled is None  # type: ignore[attr-defined]


class Shim:
    """Calls a function of the library with tensors, as generated code does."""

    def __init__(self, name: str) -> None:
        self.function = getattr(paged_cpu.library(), f"aoti_torch_cpu_{name}")

    def __call__(self, *arguments: Any) -> list[Tensor]:
        pointers: list[Any] = []
        output = ctypes.c_void_p()
        for argument in arguments:
            if isinstance(argument, Tensor):
                pointers.append(ctypes.c_void_p(compiled._handles([argument])[0]))
            else:
                pointers.append(ctypes.c_double(argument) if isinstance(argument, float) else argument)
        assert self.function(*pointers, ctypes.byref(output)) == 0
        capsules = [compiled._new_capsule(output, None, None)] if output else []
        return torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(capsules)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "head_size", "page_size"), [
    (4, 2, 16, 16), (8, 1, 32, 5), (3, 3, 64, 16), (7, 1, 80, 1), (2, 1, 96, 7), (8, 2, 128, 16), (6, 3, 72, 16),
])  # fmt: skip
def test_decode_attention_in_c_is_the_definition(
    heads: int, kv_heads: int, head_size: int, page_size: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(heads * head_size)
    seq_lens = torch.tensor([1, 0, 31, 32, 33, 64, 100, 7], dtype=torch.int32)
    max_pages = -(-100 // page_size)
    num_pages = len(seq_lens) * max_pages
    caches = torch.randn(2, num_pages, page_size, kv_heads, head_size).to(dtype)
    table = torch.randperm(num_pages, dtype=torch.int32).view(len(seq_lens), max_pages)
    for row, seq_len in zip(table, seq_lens.tolist(), strict=True):
        last, used = divmod(seq_len, page_size)
        caches[:, row[last].item() if last < max_pages else row[-1].item(), used:] = float("nan") if used else 0
        row[-(-seq_len // page_size) :] = -1
    query = torch.randn(len(seq_lens), 2, heads, head_size).to(dtype)[:, 1]  # strided
    op = FlashAttnDecode(heads, head_size, head_size**-0.5, kv_heads)
    wanted = op.reference(query.double(), *caches.double(), seq_lens, table, 100)
    (found,) = Shim("decode_paged_kv")(query, *caches, seq_lens, table, op.scale)
    assert found.dtype == dtype
    error = (found.double() - wanted).norm() / wanted.norm()
    assert error < (2e-6 if dtype == torch.float32 else 4e-3)
    eager = op(query, *caches, seq_lens, table, 100)
    assert (eager.double() - wanted).norm() / wanted.norm() < (2e-6 if dtype == torch.float32 else 4e-3)


def test_nan_in_a_query_stays_in_its_row_of_the_c_kernel() -> None:
    caches, query = torch.randn(2, 4, 16, 1, 16), torch.randn(2, 2, 16)
    query[1, 0, 3] = float("nan")
    lens, table = torch.tensor([40, 40], dtype=torch.int32), torch.tensor([[0, 1, 2], [1, 2, 3]], dtype=torch.int32)
    (found,) = Shim("decode_paged_kv")(query, *caches, lens, table, 0.25)
    assert found.isnan().any(-1).tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns", "size"), [(32, 64, 128), (1, 1, 1), (7, 37, 70), (75, 100, 33), (64, 16, 16)]
)
def test_product_of_few_rows_in_c_is_the_definition(rows: int, columns: int, size: int, has_bias: bool) -> None:
    torch.manual_seed(rows)
    x, weight, bias = torch.randn(rows, 2, size)[:, 1], torch.randn(columns, size), torch.randn(columns)
    pointer = ctypes.c_void_p(compiled._handles([bias])[0])
    (found,) = Shim("linear_few_rows")(x, weight, ctypes.byref(pointer) if has_bias else None)
    wanted = torch.nn.functional.linear(x.double(), weight.double(), bias.double() if has_bias else None)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 2e-6 * (1 + size**0.5) * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_store_in_c_writes_what_the_definition_writes(dtype: torch.dtype) -> None:
    key, value = torch.randn(2, 5, 4, 24).to(dtype)[:, :, ::2].unbind()
    slots = torch.tensor([7, -1, 0, 31, 12])
    found, wanted = torch.zeros(2, 2, 4, 8, 2, 24, dtype=dtype).unbind()
    Shim("store_paged_kv")(key, value, *found, slots)
    StoreKVCache().reference(key, value, *wanted, slots)
    assert wanted.any()
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("is_closed", [True, False])
def test_weights_caches_and_thread_are_gone_with_the_engine(is_closed: bool) -> None:
    compiled_llm()
    llm = make_llm(**COMPILED)
    runner: Any = llm.core.executor.runner
    thread = runner.compiled._worker._thread
    tokens(llm, GREEDY, PROMPTS[:3])
    model = runner.model
    parts = [*model.parameters(), *(layer.kv_cache for layer in cached_layers(model))]
    storages = [part.untyped_storage() for part in parts]
    del runner, model, parts
    if is_closed:
        llm.close()
        assert not thread.is_alive()
    del llm
    gc.collect()
    assert not thread.is_alive()
    assert {torch._C._storage_Use_Count(storage._cdata) for storage in storages} == {1}
