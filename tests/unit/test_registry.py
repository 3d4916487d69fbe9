"""Names, look-ups and the dependency graph, on the real baseline and on small made-up ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import Forks

from fastkernels import registry, source
from fastkernels.errors import UnknownNameError, UsageError

LLAMA_CHAIN = {"llama_decoder_layer", "llama_model", "llama_for_causal_lm"}


@pytest.fixture
def baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty baseline in the place of the real one."""

    def forget() -> None:
        for cached in (source.modules, registry.ops, registry._graph):
            cached.cache_clear()

    for level in source.LEVELS:
        (tmp_path / f"L{level}").mkdir()
    monkeypatch.setattr(source, "BASELINE_DIR", tmp_path)
    forget()
    yield tmp_path
    monkeypatch.undo()
    forget()


def write(baseline: Path, place: str, text: str) -> None:
    (baseline / place).write_text("from fastkernels.op import Op\n" + text)


@pytest.mark.parametrize(
    ("class_name", "name"),
    [
        ("RMSNorm", "rms_norm"),
        ("QKVParallelLinear", "qkv_parallel_linear"),
        ("SiluAndMul", "silu_and_mul"),
        ("LlamaMLP", "llama_mlp"),
        ("LlamaForCausalLM", "llama_for_causal_lm"),
        ("ParallelLMHead", "parallel_lm_head"),
        ("StoreKVCache", "store_kvcache"),
        ("AllReduce", "allreduce"),
        ("Conv2d", "conv2d"),
    ],
)
def test_snake_case_splits_words_and_acronyms(class_name: str, name: str) -> None:
    assert registry.snake_case(class_name) == name


def test_ops_holds_llama_at_every_level() -> None:
    levels = {entry.class_name: entry.level for entry in registry.ops().values()}
    assert levels["RMSNorm"] == levels["StoreKVCache"] == 1
    assert levels["QKVParallelLinear"] == levels["LlamaAttention"] == 2
    assert (levels["LlamaDecoderLayer"], levels["LlamaForCausalLM"]) == (3, 4)


def test_every_op_can_be_imported_under_its_entry(forks: Forks) -> None:
    script = (
        "import importlib\nfrom fastkernels.registry import ops\nfrom fastkernels.op import Op\n"
        "for e in ops().values():\n"
        "    cls = getattr(importlib.import_module(e.module), e.class_name)\n"
        "    assert issubclass(cls, Op) and cls.__module__ == e.module and cls.spec.outputs is not None, e\n"
    )
    done = forks.run(script)
    assert done.code == 0, done.err


def test_reading_the_registry_imports_neither_torch_nor_tasks() -> None:
    script = (
        "import sys\nfrom fastkernels import registry\nregistry.used_by('rms_norm')\n"
        "print([m for m in sys.modules if m == 'torch' or m.startswith('fastkernels.tasks')])"
    )
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("target", ["rms_norm", "RMSNorm", "L1/rms_norm", "L1/rms_norm.py"])
def test_find_ops_takes_name_class_and_file(target: str) -> None:
    assert [entry.name for entry in registry.find_ops(target)] == ["rms_norm"]


def test_find_ops_of_a_stem_gives_all_its_ops() -> None:
    found = {entry.name for entry in registry.find_ops("parallel_linear")}
    assert found >= {"qkv_parallel_linear", "merged_column_parallel_linear", "row_parallel_linear"}


@pytest.mark.parametrize(("target", "near"), [("rmsnorm", "rms_norm"), ("L1/rms_nrm", "L1/rms_norm")])
def test_find_ops_of_an_unknown_name_suggests_the_nearest(target: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean .*{near}"):
        registry.find_ops(target)


def test_used_by_reaches_the_models() -> None:
    above_norm, above_silu = ({e.name for e in registry.used_by(op)} for op in ("rms_norm", "silu_and_mul"))
    assert above_norm >= LLAMA_CHAIN
    assert LLAMA_CHAIN | {"llama_mlp"} <= above_silu
    assert "llama_mlp" not in above_norm


def test_used_by_leaves_out_classes_that_derive_in_the_same_file() -> None:
    above = {entry.name for entry in registry.used_by("column_parallel_linear")}
    assert not above & {"merged_column_parallel_linear", "qkv_parallel_linear", "llama_mlp"}


def test_uses_counts_what_a_base_of_the_same_file_uses() -> None:
    assert "linear" in {entry.name for entry in registry.uses("qkv_parallel_linear")}


def test_ops_of_architecture_include_the_engines_and_no_others() -> None:
    found = {entry.name for entry in registry.ops_of_architecture("llama")}
    assert {"llama_for_causal_lm", "rms_norm", "store_kvcache", "greedy_sample"} <= found
    assert "column_parallel_linear" not in found
    assert "llama" in registry.architectures_with("greedy_sample")
    assert "dinov3" not in registry.architectures_with("greedy_sample")


def test_architecture_of_reads_a_hugging_face_config() -> None:
    found = registry.architecture_of({"architectures": ["LlamaForCausalLM"]})
    assert (found.name, found.class_name) == ("llama", "LlamaForCausalLM")


@pytest.mark.parametrize("config", [{}, {"architectures": None}, {"architectures": ["LlamaForCausalML"]}])
def test_architecture_of_an_unknown_config_raises(config: dict[str, object]) -> None:
    with pytest.raises(UnknownNameError, match="LlamaForCausalLM"):
        registry.architecture_of(config)


def test_ops_of_a_level_that_is_none_raises() -> None:
    with pytest.raises(UsageError, match="no level 5"):
        registry.ops_of_level(5)


def test_two_classes_of_one_name_are_refused(baseline: Path) -> None:
    write(baseline, "L1/norm.py", "class RMSNorm(Op): ...")
    write(baseline, "L2/other.py", "class RmsNorm(Op): ...")
    with pytest.raises(UsageError, match=r"RMSNorm in L1/norm\.py and RmsNorm in L2/other\.py"):
        registry.ops()


def test_a_stem_spelled_unlike_its_class_is_refused(baseline: Path) -> None:
    write(baseline, "L1/rmsnorm.py", "class RMSNorm(Op): ...")
    with pytest.raises(UsageError, match="'rms_norm': rename the file"):
        registry.ops()


def test_a_file_that_does_not_parse_is_named(baseline: Path) -> None:
    write(baseline, "L1/broken.py", "class RMSNorm(Op")
    with pytest.raises(UsageError, match=r"broken\.py does not parse"):
        registry.ops()


def test_only_public_descendants_of_op_are_ops(baseline: Path) -> None:
    write(baseline, "L1/a.py", "class Norm(Op): ...\nclass _Hidden(Op): ...\nclass Data: ...\nclass Twice(Norm): ...")
    assert set(registry.ops()) == {"norm", "twice"}


def test_the_graph_follows_functions_constants_and_module_aliases(baseline: Path) -> None:
    b = "fastkernels.tasks.baseline.L1"
    write(baseline, "L1/norm.py", "class Norm(Op): ...\ndef make():\n    return Norm()")
    write(baseline, "L1/rope.py", "class Rope(Op): ...")
    write(baseline, "L1/gelu.py", "class Gelu(Op): ...")
    write(baseline, "L1/noise.py", "class Noise(Op): ...")
    write(
        baseline,
        "L2/block.py",
        f"from {b} import gelu as g\nfrom {b}.norm import make as new\nfrom {b}.rope import Rope\n"
        f"from {b}.noise import Noise\nPARTS = (Rope,)\n"
        "class Block(Op):\n    def __init__(self):\n        self.parts = [new(), g.Gelu(), *PARTS]\n"
        "    def cost(self, layer: Noise) -> Noise: ...",
    )
    assert {entry.name for entry in registry.uses("block")} == {"norm", "gelu", "rope"}


def test_a_part_that_is_passed_to_the_constructor_is_used(baseline: Path) -> None:
    write(baseline, "L1/rope.py", "class Rope(Op): ...")
    write(
        baseline,
        "L2/block.py",
        "from fastkernels.tasks.baseline.L1.rope import Rope\n"
        "class Block(Op):\n    def __init__(self, rope: Rope) -> None: ...",
    )
    assert [entry.name for entry in registry.used_by("rope")] == ["block"]
