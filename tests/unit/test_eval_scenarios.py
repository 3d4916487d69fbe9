"""Scenario sets as YAML: what is wrong, in which line; and what the shipped ones hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastkernels.bench.eval.plan import plan_of
from fastkernels.bench.eval.scenario_file import find_scenario_set, read_scenario_set, scenario_sets
from fastkernels.bench.eval.scenarios import EvalScenario, ScenarioSet, WorkloadPart
from fastkernels.engine.model_source import presets, shipped_checkpoints
from fastkernels.errors import InputFileError, UnknownNameError, UsageError
from fastkernels.registry import ARCHITECTURES
from fastkernels.scoring.items import Thresholds
from fastkernels.scoring.manifest import load_manifest

GOOD = """\
num_restarts: 4
pass_seconds: 5
scenarios:
  - model: tiny-llama
    dtype: float32
    throughput: [{name: balanced, num_requests: 8, scale: 0.05}]
    latency:
      - name: single
        num_requests: 2
        scale: 0.05
  - model: tiny-dlrmv2
    dtype: float32
    throughput: [{name: examples, num_requests: 8}]
    latency: [{name: examples, num_requests: 2}]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_a_set_is_read_with_its_defaults(tmp_path: Path) -> None:
    found = read_scenario_set(written(tmp_path, GOOD))
    assert (found.name, found.num_restarts, found.num_passes, found.pass_seconds) == ("mine", 4, 3, 5.0)
    llama, dlrm = found.scenarios
    assert llama.throughput == (WorkloadPart("balanced", 8, 0.05),)
    assert (llama.name, llama.tensor_parallel_size, llama.makes_tokens) == ("tiny-llama-float32", 1, True)
    assert (dlrm.latency[0].label, dlrm.makes_tokens) == ("examples x2", False)
    assert llama.throughput[0].label == "balanced x8 scale 0.05"


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("tiny-llama", "tiny-lama", 4, "Did you mean tiny-llama"),
        ("dtype: float32\n    throughput: [{name: bal", "dtyp: float32\n    throughput: [{name: bal", 5, "mean dtype?"),
        ("dtype: float32\n    throughput: [{name: bal", "dtype: int4\n    throughput: [{name: bal", 5, "'int4'; it is"),
        ("name: balanced", "name: balance", 6, "Did you mean balanced"),
        ("name: balanced", "name: examples", 6, "tiny-llama makes tokens"),
        (
            "num_requests: 2\n        scale",
            "num_requests: two\n        scale",
            9,
            "num_requests is 'two'; it is",
        ),
        ("num_requests: 2\n        scale", "num_requests: true\n        scale", 9, "num_requests is 'true'"),
        ("scale: 0.05\n  -", "scale: -1\n  -", 8, "above 0, got -1.0"),
        (
            "name: examples, num_requests: 8",
            "name: balanced, num_requests: 8",
            13,
            "of prompts; say --work",
        ),
        ("name: examples, num_requests: 8", "name: examples, num_requests: 0", 13, "the least is 1"),
        ("num_requests: 8}]\n    latency: [{name: ex", "size: 8}]\n    latency: [{name: ex", 13, "named 'size'"),
        ("    latency: [{name: examples, num_requests: 2}]\n", "", 11, "a scenario lacks 'latency'"),
        ("  - model: tiny-dlrmv2\n", "  - model: tiny-dlrmv2\n    model: x\n", 12, "'model' is there twice"),
        (
            "  - model: tiny-dlrmv2\n    dtype: float32\n",
            "  - model: tiny-dlrmv2\n    tensor_parallel_size: 2\n    dtype: float32\n",
            14,
            "leave --tp out",
        ),
        (
            "  - model: tiny-llama\n",
            "  - model: tiny-llama\n    tensor_parallel_size: 2\n    expert_parallel: true\n",
            6,
            "tiny-llama has no experts; leave it out",
        ),
        (
            "  - model: tiny-llama\n",
            "  - model: tiny-mixtral\n    expert_parallel: true\n",
            5,
            "give tensor_parallel_size, of 2 or more",
        ),
        (
            "  - model: tiny-llama\n",
            "  - model: tiny-mixtral\n    tensor_parallel_size: 9\n    expert_parallel: true\n",
            6,
            "8 experts, too few for each of 9 ranks",
        ),
        (
            "  - model: tiny-llama\n",
            "  - model: tiny-mixtral\n    expert_parallel: 2\n",
            5,
            "expert_parallel is '2'; it is true or false",
        ),
        ("num_restarts: 4", "num_restarts: 2", 1, "num_restarts is 2; the least is 3"),
        (
            "num_restarts: 4\npass_seconds: 5",
            "pass_seconds: 5\nnum_restarts: 1",
            2,
            "num_restarts is 1; the least is 3",
        ),
        ("pass_seconds: 5", "num_passes: 0", 2, "num_passes is 0; the least is 1"),
        ("pass_seconds: 5", "num_checked: 0", 2, "num_checked is 0; the least is 1"),
        ("[{name: balanced, num_requests: 8, scale: 0.05}]", "[]", 6, "tiny-llama has no throughput workload"),
        (
            "[{name: examples, num_requests: 2}]",
            "\n      - {name: examples, num_requests: 2}\n      - {name: examples, num_requests: 2}",
            16,
            "tiny-dlrmv2 has a latency workload twice: examples x2, examples x2",
        ),
        (
            "    dtype: float32\n    throughput: [{name: bal",
            "    dtype: float32\n    tensor_parallel_size: 3\n    throughput: [{name: bal",
            6,
            "tensor_parallel_size is 3, and tiny-llama does not split so: The number of attention heads 4",
        ),
        (
            "    dtype: float32\n    throughput: [{name: bal",
            "    dtype: float32\n    tensor_parallel_size: 0\n    throughput: [{name: bal",
            6,
            "tensor_parallel_size is 0; the least is 1",
        ),
        ("num_restarts: 4", "num_restart: 4", 1, "Did you mean num_restarts"),
        ("scenarios:\n", "scenarios: 3\nother:\n", 4, "named 'other'"),
        ("pass_seconds: 5", "pass_seconds: [5", 3, "not YAML"),
        ("pass_seconds: 5", "pass_seconds: soon", 2, "pass_seconds is 'soon'; it is a number"),
        ("pass_seconds: 5", "pass_seconds: .inf", 2, "pass_seconds is inf; it is over 0 and at most 86400"),
        ("pass_seconds: 5", "pass_seconds: 1.0e+12", 2, "pass_seconds is 1000000000000.0; it is over 0"),
        ("pass_seconds: 5", f"pass_seconds: 1{'0' * 400}", 2, "0'; it is a number"),
        ("pass_seconds: 5", "? [a, b]\n: 5", 2, "a key of a scenario set is a text, not a sequence"),
        ("pass_seconds: 5", "? {a: b}\n: 5", 2, "a key of a scenario set is a text, not a mapping"),
        ("tiny-llama", "2024-13-01", 4, "model is '2024-13-01'; it is a text"),
        ("tiny-llama", "!!python/name:os.system x", 4, "model is 'x'; it is a text"),
        ("tiny-llama", "!!str [x]", 4, "model is a sequence; it is a text"),
        ("num_restarts: 4", "num_restarts: !!int abc", 1, "num_restarts is 'abc'; it is a whole number"),
        ("num_restarts: 4", "num_restarts: !!int ''", 1, "num_restarts is ''; it is a whole number"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    assert GOOD.count(old) == 1
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(InputFileError) as caught:
        read_scenario_set(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1\n", "scenarios: []\n", "scenarios:\n  - 3\n", "\x00"])
def test_a_file_that_is_no_scenario_set_is_told_as_such(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputFileError, match=r"mine\.yaml"):
        read_scenario_set(written(tmp_path, text))


def test_a_scenario_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"mine\.yaml:11: 2 scenarios of 'mine' are tiny-llama-float32"):
        read_scenario_set(written(tmp_path, GOOD.replace("tiny-dlrmv2", "tiny-llama").replace("examples", "single")))


def test_an_unknown_set_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean tiny"):
        find_scenario_set("tinny")
    with pytest.raises(InputFileError, match="cannot be read"):
        read_scenario_set(Path("no_such.yaml"))


def test_shipped_sets_are_read_and_tiny_has_every_architecture() -> None:
    assert scenario_sets() == ["default", "full", "tiny", "trained"]
    tiny, default, full = (find_scenario_set(name) for name in ("tiny", "default", "full"))
    assert {s.architecture.name for s in tiny.scenarios} == {a.name for a in ARCHITECTURES}
    assert all(s.model.startswith("tiny-") and s.dtype == "float32" for s in tiny.scenarios)
    assert f"# {len(tiny.scenarios)} scenarios" in (Path(__file__).parents[2] / "README.md").read_text()
    published = {name for name in presets() if not name.startswith("tiny-")}
    assert {s.model for s in default.scenarios} <= published
    assert all(s.tensor_parallel_size == 1 for s in default.scenarios)
    assert {s.model for s in full.scenarios} == published
    assert {(s.model, s.dtype) for s in default.scenarios} <= {(s.model, s.dtype) for s in full.scenarios}
    assert {s.tensor_parallel_size for s in full.scenarios} > {1, 2}
    assert {s.architecture.name for s in full.scenarios if s.expert_parallel} == {"gpt-oss", "mixtral", "qwen3_next"}


def test_whole_experts_are_part_of_a_scenario_and_of_its_items_name(tmp_path: Path) -> None:
    ranks = "tiny-mixtral\n    tensor_parallel_size: 2\n    expert_parallel: "
    split, whole = (
        read_scenario_set(written(tmp_path, GOOD.replace("tiny-llama", ranks + word))) for word in ("false", "true")
    )
    assert [s.scenarios[0].name for s in (split, whole)] == ["tiny-mixtral-float32-tp2", "tiny-mixtral-float32-ep2"]
    for found, is_whole in ((split, False), (whole, True)):
        scenario = ScenarioSet.from_json(json.loads(json.dumps(found.to_json()))).scenarios[0]
        assert scenario == found.scenarios[0]
        options = scenario.engine_scenario(scenario.latency[0], 0).options
        assert options.get("enable_expert_parallel", False) is is_whole
        plan = plan_of(scenario, (), found, Thresholds(0.1, 0.2, 1.0), "cpu", 0)
        assert plan.order().options()["enable_expert_parallel"] is is_whole


def test_the_set_of_trained_models_has_every_one_that_ships() -> None:
    trained = find_scenario_set("trained").scenarios
    assert {s.model for s in trained} == set(shipped_checkpoints())
    assert {s.architecture.name for s in trained} >= {"llama", "mixtral", "mamba2"}, "Dense, of experts, state-space."
    assert not all(s.makes_tokens for s in trained)
    manifest = load_manifest()
    for scenario in trained:
        assert manifest.thresholds(scenario.architecture.family, scenario.dtype).good > 0


def test_scenarios_are_chosen_by_model() -> None:
    tiny = find_scenario_set("tiny")
    assert [s.model for s in tiny.only(["tiny-pi0", "tiny-llama"]).scenarios] == ["tiny-llama", "tiny-pi0"]
    with pytest.raises(UnknownNameError, match="Did you mean tiny-pi0"):
        tiny.only(["tiny-pi"])
    with pytest.raises(UsageError, match="num_restarts is 1; the least is 3"):
        tiny.with_restarts(1)


@pytest.mark.parametrize(
    ("model", "size", "says"),
    [
        ("llama-3.1-8b", 64, "The number of attention heads 32 cannot be split evenly over 64 ranks"),
        ("tiny-mamba2", 4, "The number of groups 2"),
        ("tiny-qwen3_next", 4, "The number of key heads 2"),
        ("tiny-whisper", 7, "The number of the encoder's attention heads"),
        ("tiny-qwen2_vl", 4, "The number of heads 2"),
    ],
)
def test_ranks_that_a_models_heads_do_not_split_over_are_refused(model: str, size: int, says: str) -> None:
    part = (WorkloadPart("single", 1, 0.05),)
    with pytest.raises(UsageError, match=f"tensor_parallel_size is {size}, and {model} does not split so: {says}"):
        EvalScenario(model, "float32", size, part, part).check_ranks()


def test_ranks_may_hold_the_same_key_value_head() -> None:
    part = (WorkloadPart("single", 1, 0.05),)
    for size in (1, 2, 4):
        EvalScenario("tiny-llama", "float32", size, part, part).check_ranks()
    EvalScenario("llama-3.1-8b", "bfloat16", 16, part, part).check_ranks()


def test_a_scenario_needs_both_kinds_of_workload() -> None:
    part = WorkloadPart("single", 1)
    with pytest.raises(UsageError, match="no latency workload"):
        EvalScenario("tiny-llama", "float32", 1, (part,))
    with pytest.raises(UsageError, match="twice"):
        EvalScenario("tiny-llama", "float32", 1, (part, part), (part,))
    with pytest.raises(UsageError, match="has no scenario"):
        ScenarioSet("empty", ())
