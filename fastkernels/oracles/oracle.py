"""What an oracle offers: tiny configurations, a model with weights by seed, its checkpoint, requests and answers.

Beside that, what is measured at the published size: its configuration, its workloads, and the library's ways to run.
"""

from __future__ import annotations

import importlib
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastkernels.engine.model_source import find_model
from fastkernels.errors import EnvironmentProblem, UnsupportedError
from fastkernels.registry import Architecture

Request = Mapping[str, Any]
"""As a pipeline's `prepare` takes it; of a model that makes tokens: prompt_token_ids, max_tokens, and more for LLM."""

Answer = Mapping[str, Tensor]
"""By the names of our result's tensors; of a model that makes tokens: token_ids, and logits of all but the last."""


def first_tensor(output: Any) -> Tensor:
    """The tensor that a module's output is, or begins with."""
    while not isinstance(output, Tensor):
        output = output[0]
    return output


@dataclass(frozen=True)
class Level:
    """A module of ours and the oracle's that computes the same; "{i}" stands for every layer, several
    for layers of blocks.

    our_output, their_output: the tensor to compare in what the module returns.
    """

    ours: str
    theirs: str
    our_output: Callable[[Any], Tensor] = first_tensor
    their_output: Callable[[Any], Tensor] = first_tensor


TOLERANCE = 1e-4
"""Of the largest difference from the oracle, relative to the largest number of the same tensor; both in float32."""

_NO_SIZES = (
    *("_provenance", "_class_name", "architectures", "model_type", "dtype", "torch_dtype"),
    *("transformers_version", "quantization_config"),
)
"""Of a config.json, what is no argument of a size."""


@dataclass(frozen=True)
class Load:
    """A workload that is measured. batches: numbers of requests at once.

    is_whole: requests go from start to end through the engine, beside the oracle's `run`. Else it is one forward pass
    on prepared requests, or one step of an iterative model, beside its `forward`.
    """

    name: str
    batches: tuple[int, ...] = (1, 8, 32)
    is_whole: bool = False


class With:
    """A model some of whose attributes are others: what was compiled of it."""

    def __init__(self, original: nn.Module, **others: Any) -> None:
        self.__dict__ |= {"original": original, **others}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"], name)


class Oracle(ABC):
    """One architecture by its library of record, in float32 on a CPU unless told otherwise.

    library: its package's name, that of the first module required when left out. requires: modules that must be there,
    which are imported. levels: what is compared beside the answers, blocks and layers.
    preset: the engine's preset of the published size. layers_key: its key of the number of layers. most_layers: so many
    fit beside the library's copy into 139 GiB; None: all. loads: what is measured. tolerance: of what is
    compared at the tiny sizes.
    """

    library: ClassVar[str] = ""
    requires: ClassVar[tuple[str, ...]] = ("transformers",)
    levels: ClassVar[tuple[Level, ...]] = ()
    preset: ClassVar[str] = ""
    layers_key: ClassVar[str] = "num_hidden_layers"
    most_layers: ClassVar[int | None] = None
    loads: ClassVar[tuple[Load, ...]] = (Load("published"),)
    tolerance: ClassVar[float] = TOLERANCE

    @abstractmethod
    def tiny(self) -> Mapping[str, dict[str, Any]]:
        """Arguments of `build` by a variant's name: small, and among them the awkward ones."""

    @abstractmethod
    def build(self, sizes: Mapping[str, Any], seed: int) -> nn.Module:
        """The library's model with weights by seed, of which each matters: no zero biases, no norms of one."""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """A checkpoint as the library publishes it, with its config.json."""

    @abstractmethod
    def requests(self, sizes: Mapping[str, Any]) -> Sequence[Request]:
        """Several shapes, and the awkward ones."""

    @abstractmethod
    def answer(self, model: nn.Module, request: Request) -> Answer:
        """What the library says of one request alone."""

    def published(self, num_layers: int | None) -> dict[str, Any]:
        """Arguments of `build` at the published size, from the preset; num_layers: of that many layers.

        Errors: UnsupportedError when the architecture is not measured this way.
        """
        if not self.preset:
            raise UnsupportedError(f"{type(self).__name__} has no published size to measure.")
        sizes = {key: value for key, value in find_model(self.preset).hf_config.items() if key not in _NO_SIZES}
        if num_layers is None:
            return sizes
        if self.layers_key not in sizes:
            raise UnsupportedError(f"{type(self).__name__} has no number of layers to lower.")
        return {**sizes, self.layers_key: num_layers}

    def num_layers(self, sizes: Mapping[str, Any]) -> int | None:
        """Of arguments of `build`; None where layers are not counted."""
        return sizes.get(self.layers_key)

    def load(self, sizes: Mapping[str, Any], num: int, name: str) -> list[Request]:
        """`num` requests of the load of that name; of one shape but where the engine takes several."""
        raise UnsupportedError(f"{type(self).__name__} has no load to measure.")

    def batch(self, model: Any, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
        """What `forward` takes, of requests that our pipeline prepared: on the model's device, floats in its dtype."""
        some = next(model.parameters())
        stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        return {n: t.to(some.device, some.dtype if t.is_floating_point() else t.dtype) for n, t in stacked.items()}

    def forward(self, model: Any, batch: Mapping[str, Any]) -> Answer:
        """The library's answer to a batch, by the names of what our pipeline's forward (or advance) returns."""
        raise UnsupportedError(f"{type(self).__name__} has no batched forward to measure.")

    def paired(self, given: Answer, wanted: Answer) -> tuple[Answer, Answer]:
        """What of two answers to a load is compared, row by row; all of it unless its order tells nothing."""
        return given, wanted

    def run(self, model: Any, requests: Sequence[Request]) -> Answer:
        """The library's answer to whole requests, together: tensors [num_requests, ...] by our result's names."""
        raise UnsupportedError(f"{type(self).__name__} runs no whole requests.")

    def modes(self, model: nn.Module, compile_mode: str | None) -> dict[str, Callable[[], Any]]:
        """The library's ways to run, by name: what builds the model that `forward` and `run` take.

        "library" is the library as it is and must be among them; compile_mode: torch.compile's, None: not compiled.
        """
        ways: dict[str, Callable[[], Any]] = {"library": lambda: model}
        if compile_mode is not None:
            ways["library_compiled"] = lambda: self.compiled(model, compile_mode)
        return ways

    def compiled(self, model: nn.Module, mode: str) -> Any:
        """The model compiled by torch for each shape that comes."""
        return compiled(model, mode)

    def measured_against(self, model: nn.Module) -> str:
        """What of the library is measured, where its name and version do not say it."""
        return ""

    def further(self, model: Any, requests: Sequence[Request], answer: Answer) -> dict[str, float]:
        """Figures of our answer to whole requests, beside what tensors differ by."""
        return {}

    def save_config(self, model: nn.Module, folder: Path) -> Path:
        """What `Pipeline` or `LLM` builds the same sizes from."""
        model.config.save_pretrained(folder)  # type: ignore[union-attr,operator]
        path = folder / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "architectures": [type(model).__name__]}))
        return path

    def tensors(self, model: nn.Module) -> Iterable[tuple[str, Tensor]]:
        """The weights by published names."""
        return model.state_dict().items()


def compiled(function: Any, mode: str) -> Any:
    """By torch, anew for each shape: what is compiled for any shape is slower."""
    return torch.compile(function, mode=mode, dynamic=False)


def oracle_of(architecture: Architecture) -> Oracle:
    """Errors: UnsupportedError when the architecture names none; EnvironmentProblem when its library is missing."""
    if not architecture.oracle:
        raise UnsupportedError(f"The architecture {architecture.name} names no oracle.")
    try:
        oracle = importlib.import_module(architecture.oracle).ORACLE
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a library says of itself when it is imported
            for name in oracle.requires:
                importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(f"The oracle of {architecture.name} needs {error.name}: install it.") from error
    return oracle


def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Weights by seed that keep activations near one: matrices by fan-in, biases about 0, norms and scales about 1."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, param in model.named_parameters():
        if param.device not in generators:
            generators[param.device] = torch.Generator(param.device).manual_seed(seed)
        noise = torch.randn(param.shape, generator=generators[param.device], device=param.device)
        if param.dim() >= 2:
            param.data.copy_(noise * param[0].numel() ** -0.5)
        else:
            is_bias = name.endswith("bias")
            param.data.copy_(0.1 * noise + (0.0 if is_bias else 1.0))
    return model.eval()


def prompts(lengths: Sequence[int], vocab_size: int, seed: int = 5) -> list[list[int]]:
    """Token ids by seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in lengths]


def greedy_answer(model: Any, request: Request, **fixed: Any) -> Answer:
    """Of a transformers language model: the greedy tokens, and the logits of every token but the last.

    fixed: further arguments of the model's forward, given with the whole sequence at each step (no cache is used).
    """
    tokens = list(request["prompt_token_ids"])
    with torch.no_grad():
        for _ in range(request["max_tokens"]):
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False, **fixed).logits[0]
            tokens.append(int(logits[-1].argmax()))
    made = tokens[len(request["prompt_token_ids"]) :]
    return {"token_ids": torch.tensor(made), "logits": logits.float()}
