"""`fastkernels generate`: continue prompts with a model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from rich.markup import escape
from typer import Option

from fastkernels.cli.common import console, error_console, print_json
from fastkernels.engine.llm import LLM
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.errors import UsageError


def generate(
    model: Annotated[str, Option(help="A checkpoint directory, a config.json, or a preset such as tiny-llama.")],
    prompt: Annotated[list[str] | None, Option(help="A text to continue; may be repeated.")] = None,
    prompts_file: Annotated[Path | None, Option(help="A file with one prompt a line.")] = None,
    candidates: Annotated[list[str] | None, Option(help="Implementation sets that replace ops; repeated.")] = None,
    max_tokens: Annotated[int, Option(help="New tokens at most.")] = 64,
    temperature: Annotated[float, Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, Option(help="0 is off.")] = 0,
    top_p: Annotated[float, Option(help="1 is off.")] = 1.0,
    seed: Annotated[int, Option(help="Of random weights and of sampling.")] = 0,
    ignore_eos: Annotated[bool, Option(help="Go on past the model's end token.")] = False,
    dtype: Annotated[str | None, Option(help="float32, bfloat16 or float16; the model's own when left out.")] = None,
    device: Annotated[str | None, Option(help="cpu or cuda; the GPU when there is one.")] = None,
    num_pages: Annotated[int, Option(help="Pages of the KV cache.")] = 512,
    page_size: Annotated[int, Option(help="Tokens in a page.")] = 16,
    max_num_batched_tokens: Annotated[int, Option(help="Tokens in one step.")] = 8192,
    max_num_seqs: Annotated[int, Option(help="Requests in one step.")] = 256,
    as_json: Annotated[bool, Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Generate text with a model."""
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, max_tokens=max_tokens, ignore_eos=ignore_eos
    )
    prompts = _prompts(prompt or [], prompts_file)
    llm = LLM(
        model,
        dtype=dtype,
        device=device,
        num_pages=num_pages,
        page_size=page_size,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
        seed=seed,
        candidates=candidates or (),
    )
    with error_console.status("generating") as status:
        outputs = llm.generate(prompts, params, lambda done, most: status.update(f"{done} of at most {most} tokens"))
    replaced = llm.replacements()
    if as_json:
        print_json({"outputs": [asdict(output) for output in outputs], "candidates": replaced})
        return
    for output in outputs:
        for answer in output.outputs:
            console.print(f"[bold]{escape(output.prompt or '')}[/]{escape(answer.text)}", soft_wrap=True)
    for line in replaced:
        console.print(f"[dim]{line['op']} of {line['set']}: {line['status']}, {line['num_calls']} calls[/]")


def _prompts(given: list[str], file: Path | None) -> list[str]:
    prompts = list(given)
    if file is not None:
        if not file.is_file():
            raise UsageError(f"--prompts-file {file} does not exist.")
        prompts += [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise UsageError("There is nothing to continue; give --prompt or --prompts-file.")
    return prompts
