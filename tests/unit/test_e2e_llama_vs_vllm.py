"""benchmarks/llama_vs_vllm on a CPU: the tiny model, and transformers behind vLLM's offline API."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fastkernels.engine.model_source import ModelSource, build_config, find_model
from fastkernels.oracles.oracle import oracle_of
from fastkernels.registry import ARCHITECTURES, Kind, architecture

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "llama_vs_vllm" / "run.py"

FAKE_VLLM = '''
"""vLLM's offline API as the benchmark uses it, over transformers; refuses what the real one does not know."""
from dataclasses import dataclass, field
from types import SimpleNamespace

__version__ = "0.26.0"
print("engines print to stdout")

@dataclass
class SamplingParams:
    temperature: float
    max_tokens: int
    ignore_eos: bool
    detokenize: bool

class LLM:
    def __init__(self, model, *, skip_tokenizer_init, load_format, dtype, seed, max_model_len, max_num_seqs,
                 max_num_batched_tokens, block_size, kv_cache_memory_bytes, gpu_memory_utilization,
                 enable_prefix_caching, disable_log_stats):
        import torch
        from transformers import AutoModelForCausalLM

        assert skip_tokenizer_init and load_format == "auto" and not enable_prefix_caching
        self.max_model_len = max_model_len
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        config = self.model.config
        head_dim = config.hidden_size // config.num_attention_heads
        block = block_size * 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * 4
        cache = SimpleNamespace(num_gpu_blocks=kv_cache_memory_bytes // block, block_size=block_size)
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(cache_config=cache))

    def generate(self, prompts, sampling_params, use_tqdm):
        import torch

        assert not use_tqdm
        found = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            ids = torch.tensor([prompt["prompt_token_ids"]])
            assert ids.shape[1] + params.max_tokens <= self.max_model_len
            out = self.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=None,
                                      pad_token_id=0, max_new_tokens=params.max_tokens)
            answer = SimpleNamespace(token_ids=out[0, ids.shape[1]:].tolist())
            found.append(SimpleNamespace(outputs=[answer]))
        return found
'''


def tiny_words(site: Path) -> list[str]:
    return [
        "--model", "tiny-llama", "--dtype", "float32", "--device", "cpu", "--vllm-site", str(site), "--scale", "0.03",
        "--num-requests", "6", "--max-model-len", "128", "--max-num-seqs", "4", "--kv-tokens", "4096",
    ]  # fmt: skip


def tiny(out: Path, site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--out", str(out), *tiny_words(site), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("llama_vs_vllm_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    (site / "vllm").mkdir()
    (site / "vllm" / "__init__.py").write_text(FAKE_VLLM)
    return site


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Options: tiny-llama's are written by who asks first."""
    return "--checkpoint", str(tmp_path_factory.mktemp("weights") / "tiny-llama")


@pytest.fixture(scope="module")
def parts(site: Path, weights: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two records, as of two runs: one starts both engines for all scenarios. Who measures waits until nobody starts:
    another holds the file of turns until both engines are there."""
    folder = tmp_path_factory.mktemp("parts")
    out, path = folder / "all.json", folder / "turns"
    chosen = {"one.json": ("single", "azure_conv"), "two.json": ("batch32",)}
    scenarios = [name for names in chosen.values() for name in names]
    words = [
        "--out",
        str(out),
        *tiny_words(site),
        "--scenarios",
        *scenarios,
        "--repeats",
        "2",
        *weights,
        "--turns",
        str(path),
    ]
    with path.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with subprocess.Popen([sys.executable, str(SCRIPT), *words], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            assert any("vllm is ready" in line for line in lines)
            time.sleep(1)
            assert json.loads(out.read_text())["scenarios"] == {}
            fcntl.flock(other, fcntl.LOCK_UN)
            assert any("single 0 vllm" in line for line in list(lines))
    assert process.returncode == 0
    record = json.loads(out.read_text())
    for file, names in chosen.items():
        part = {**record, "scenarios": {name: record["scenarios"][name] for name in names}}
        (folder / file).write_text(json.dumps(part))
    return [folder / name for name in chosen]


def test_both_engines_say_the_same_tokens_from_the_same_weights(parts: list[Path]) -> None:
    record = json.loads(parts[0].read_text())
    assert record["status"] == "finished"
    for name in ("single", "azure_conv"):
        scenario = record["scenarios"][name]
        assert scenario["agreement"]["share_equal"] == 1.0, name
        assert scenario["ours"]["digests"] == scenario["vllm"]["digests"]
        assert len(scenario["ours"]["digests"]) == 1
    assert record["engines"]["ours"]["kv_tokens"] == record["engines"]["vllm"]["kv_tokens"] == 4096
    assert record["engines"]["vllm"]["version"] == "0.26.0"


def test_repeats_alternate_and_count_without_the_warm_up(parts: list[Path]) -> None:
    scenario: dict[str, Any] = json.loads(parts[0].read_text())["scenarios"]["azure_conv"]
    order = [(r["engine"], r["repeat"]) for r in scenario["repeats"]]
    assert order == [("ours", -1), ("vllm", -1), ("ours", 0), ("vllm", 0), ("vllm", 1), ("ours", 1)]
    assert [r["num_requests"] for r in scenario["repeats"]] == [6] * 6
    assert len(scenario["ours"]["all_seconds"]) == 2
    assert scenario["low"] <= scenario["ratio"] <= scenario["high"]
    assert scenario["is_bar_met"] == (scenario["ratio"] >= 1.08)


def merge(out: Path, *words: str | Path) -> None:
    load_script().main(["--out", str(out), "--merge", *map(str, words)])


def test_parts_merge_and_a_scenario_measured_twice_has_all_repeats(
    parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merge(tmp_path / "all.json", parts[0], parts[1], parts[0])
    record = json.loads((tmp_path / "all.json").read_text())
    assert set(record["scenarios"]) == {"single", "azure_conv", "batch32"}
    assert len(record["scenarios"]["single"]["ours"]["all_seconds"]) == 4
    assert len(record["scenarios"]["batch32"]["ours"]["all_seconds"]) == 2
    assert "batch32" in capsys.readouterr().out


def test_a_scenario_measured_anew_takes_the_place_of_the_one_in_a_merged_file(
    parts: list[Path], tmp_path: Path
) -> None:
    both, out = tmp_path / "both.json", tmp_path / "anew.json"
    merge(both, *parts)
    merge(out, both, parts[0], "--newest")
    record = json.loads(out.read_text())
    assert len(record["parts"]) == 3
    assert {r["part"] for r in record["scenarios"]["single"]["repeats"]} == {2}
    assert {r["part"] for r in record["scenarios"]["batch32"]["repeats"]} == {1}
    assert [(s["name"], s["repeats"][0]["part"]) for s in record["superseded"]] == [("single", 0), ("azure_conv", 0)]


def test_another_model_of_fewer_layers_goes_the_same_way(site: Path, tmp_path: Path) -> None:
    words = ("--model", "tiny-mixtral", "--layers", "1", "--scenarios", "single", "--repeats", "1")
    done = tiny(tmp_path / "mixtral.json", site, *words)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "mixtral.json").read_text())
    assert (record["benchmark"], record["model"], record["layers"]) == ("tiny-mixtral_vs_vllm", "tiny-mixtral", 1)
    scenario = record["scenarios"]["single"]
    assert scenario["agreement"]["share_equal"] == 1.0
    assert scenario["bar"] is None
    assert not scenario["is_bar_met"]


def test_every_text_model_has_settings_that_its_preset_allows(tmp_path: Path) -> None:
    module = load_script()
    names = {a.name for a in ARCHITECTURES if a.kind is Kind.AUTOREGRESSIVE}
    models = sys.modules["models"]
    assert set(models.COMPARISONS) == names - {"whisper"}
    for name in models.COMPARISONS:
        given = module.arguments(["--out", str(tmp_path / "x.json"), "--model", name])
        config = find_model(models.with_layers(given.model, given.layers, tmp_path)).hf_config
        assert config["num_hidden_layers"] == (given.layers or find_model(given.model).hf_config["num_hidden_layers"])
        build_config(ModelSource(name, config))
        assert (models.kv_bytes_per_token(config, "bfloat16") == 0) == (name == "mamba2")
    assert module.arguments(["--out", "x"]).model == "llama-3.1-8b"


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt-oss", "mamba2", "qwen3_next", "qwen2_vl"])
def test_a_written_checkpoint_has_the_published_names_and_dtypes(name: str, tmp_path: Path) -> None:
    load_script()
    checkpoint = importlib.import_module("checkpoint")
    oracle = oracle_of(architecture(name))
    variants = oracle.tiny()
    (tmp_path / "theirs").mkdir()
    oracle.save(oracle.build(variants.get("mxfp4") or next(iter(variants.values())), seed=1), tmp_path / "theirs")
    checkpoint.write_checkpoint(str(tmp_path / "theirs" / "config.json"), tmp_path / "ours", 0, "float32")
    found = []
    for folder in (tmp_path / "theirs", tmp_path / "ours"):
        tensors = {key: t for file in folder.glob("*.safetensors") for key, t in load_file(file).items()}
        found.append({key: (t.dtype, tuple(t.shape)) for key, t in tensors.items()})
    assert found[0] == found[1]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    module = load_script()

    def prepared(*words: str) -> Path:
        known = ["--out", str(tmp_path / "x.json"), "--dtype", "float32", "--checkpoint", str(tmp_path / "weights")]
        given = module.arguments([*known, *words])
        given.config = sys.modules["models"].with_layers(given.model, given.layers, tmp_path)
        found: Path = module.prepare_weights(module.Run(given), tmp_path)
        return found

    folder = prepared("--model", "tiny-llama")
    assert prepared("--model", "tiny-llama") == folder
    for words, says in (
        (("--model", "tiny-mixtral"), "'LlamaForCausalLM'"),
        (("--model", "tiny-llama", "--layers", "1"), "num_hidden_layers 2, not 1"),
        (("--model", "tiny-llama", "--seed", "3"), "seed 0, not 3"),
        (("--model", "tiny-llama", "--dtype", "bfloat16"), "dtype 'float32', not 'bfloat16'"),
    ):
        with pytest.raises(SystemExit, match=f"holds other weights: .*{says}.*Delete it"):
            prepared(*words)
    (folder / "made_of.json").unlink()
    with pytest.raises(SystemExit, match=r"no made_of\.json"):
        prepared("--model", "tiny-llama")


class Slow:
    """A worker that takes a while."""

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.02)
        requests = json.loads(Path(order["requests"]).read_text())
        if order["tokens"]:
            Path(order["tokens"]).write_text(json.dumps([[1] * r["output_len"] for r in requests]))
        counts = {"num_prompt_tokens": 1, "num_output_tokens": 1, "num_requests": 1}
        return {"seconds": 0.02, "digest": "same", "counters": {}, **counts}


def test_the_deadline_ends_the_run_with_what_there_is(tmp_path: Path) -> None:
    module = load_script()
    words = ["--out", str(tmp_path / "cut.json"), "--model", "tiny-llama", "--scale", "0.03", "--repeats", "5000"]
    run = module.Run(module.arguments([*words, "--deadline", "1.5"]))
    workers = {"ours": Slow(), "vllm": Slow()}
    is_done = module.measure(run, workers, "batch32", tmp_path, module.find_model("tiny-llama").hf_config)
    assert not is_done
    assert 1.0 < run.elapsed < 3
    repeats = json.loads((tmp_path / "cut.json").read_text())["scenarios"]["batch32"]["repeats"]
    assert 4 < len(repeats) < 160
    assert len(repeats) % 2 == 0


def test_an_engine_that_does_not_start_in_time_is_ended(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "vllm").mkdir(parents=True)
    (site / "vllm" / "__init__.py").write_text("import time; time.sleep(600)")
    words = ("--engines", "vllm", "--weights", "own", "--scenarios", "single", "--start-seconds", "4")
    done = tiny(tmp_path / "slow.json", site, *words)
    assert done.returncode != 0
    assert "vllm: not ready after 4.0 s" in done.stderr


def test_an_engine_that_fails_is_named_with_its_log(site: Path, weights: tuple[str, str], tmp_path: Path) -> None:
    words = ("--scenarios", "single", *weights, "--vllm", '{"no_such_option": 1}')
    done = tiny(tmp_path / "failed.json", site, *words)
    assert done.returncode != 0
    assert "vllm: TypeError" in done.stderr
    assert "no_such_option" in done.stderr
    assert json.loads((tmp_path / "failed.json").read_text())["engines"]["ours"]["startup_seconds"] > 0
