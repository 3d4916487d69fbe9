"""`fastkernels generate`: continue prompts with a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from rich.markup import escape
from rich.status import Status
from typer import Option

from fastkernels.cli.candidates import candidates_at_fault
from fastkernels.cli.common import console, error_console, print_json
from fastkernels.cli.engine_options import takes_engine_config
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.llm import LLM, Progress
from fastkernels.engine.pipeline import Pipeline
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.errors import UnsupportedError, UsageError
from fastkernels.sets import ImplementationSet, resolve_set


@partial(takes_engine_config, is_model_named=True)
def generate(
    engine_config: EngineConfig,
    *,
    prompt: Annotated[list[str] | None, Option(help="A text to continue; may be repeated.")] = None,
    image: Annotated[
        list[str] | None, Option(help="A picture that goes with the prompt: a file or a URL; may be repeated.")
    ] = None,
    video: Annotated[list[str] | None, Option(help="A video that goes with the prompt; may be repeated.")] = None,
    audio: Annotated[
        list[str] | None, Option(help="A recording to transcribe: a file or a URL; may be repeated.")
    ] = None,
    language: Annotated[
        str | None, Option(help="Of the recordings: en, french; the model's own when left out.")
    ] = None,
    given: Annotated[
        list[str] | None,
        Option("--input", help="NAME=VALUE of a model that makes no tokens, such as image=photo.png; repeated."),
    ] = None,
    out: Annotated[Path | None, Option(help="The file that takes the answer to --input.")] = None,
    prompts_file: Annotated[Path | None, Option(help="A file with one prompt a line.")] = None,
    max_tokens: Annotated[int, Option(help="New tokens at most.")] = 64,
    temperature: Annotated[float, Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, Option(help="0 is off.")] = 0,
    top_p: Annotated[float, Option(help="1 is off.")] = 1.0,
    ignore_eos: Annotated[bool, Option(help="Go on past the model's end token.")] = False,
    as_json: Annotated[bool, Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Run a model on your inputs: text, pictures, speech, scores, scenes."""
    sets = [resolve_set(name) for name in engine_config.candidates]
    if given:
        if prompt or prompts_file or audio:
            raise UsageError("--input and --prompt or --audio are of two kinds of models; give one.")
        _check_out(out)
        with candidates_at_fault(sets):
            pipeline = Pipeline.of(engine_config)
        _run_pipeline(pipeline, sets, given, out, as_json)
        return
    if out is not None:
        raise UsageError(
            "--out takes the answer to --input, of a model that makes no tokens; leave it out, or give both."
        )
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, max_tokens=max_tokens, ignore_eos=ignore_eos
    )
    if audio and (prompt or prompts_file or image or video):
        raise UsageError("--audio is transcribed by itself; leave prompts, --image and --video out.")
    prompts = [] if audio else _prompts(prompt or [], prompts_file)
    with candidates_at_fault(sets):
        llm = LLM(**{field.name: getattr(engine_config, field.name) for field in fields(engine_config)})
        if audio:
            _transcribe(llm, audio, params, language, as_json)
            return
        _continue(llm, _with_media(llm, prompts, image, video), params, as_json)


def _check_out(out: Path | None) -> None:
    """Before the model is loaded and run: what cannot be written is lost. Errors: UsageError."""
    if out is None:
        return
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}. Make it, or name another file.")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file in it.")


def _continue(llm: LLM, prompts: list[Any], params: SamplingParams, as_json: bool) -> None:
    """The prompts with what follows them, and what became of the candidates."""
    with error_console.status("generating") as status:
        outputs = llm.generate(prompts, params, progress=_told(status))
    replaced = llm.replacements()
    if as_json:
        print_json({"outputs": [asdict(output) for output in outputs], "candidates": replaced})
        return
    for output in outputs:
        for answer in output.outputs:
            console.print(f"[bold]{escape(output.prompt or '')}[/]{escape(answer.text)}", soft_wrap=True)
    for line in replaced:
        console.print(f"[dim]{line['op']} of {line['set']}: {line['status']}, {line['num_calls']} calls[/]")


def _told(status: Status) -> Progress:
    return lambda done, most: status.update(f"{done} of at most {most} tokens")


def _run_pipeline(
    pipeline: Pipeline, sets: Sequence[ImplementationSet], given: list[str], out: Path | None, as_json: bool
) -> None:
    """One request of the inputs; values that are JSON numbers or lists are read as such, texts never."""
    texts = getattr(pipeline.adapter, "texts", ())
    inputs: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign:
            raise UsageError(f"--input {text!r} is no NAME=VALUE.")
        inputs[name] = value if name in texts else _value(value)
    with candidates_at_fault(sets), error_console.status("running") as status:
        [result] = pipeline.run([inputs], lambda done, most: status.update(f"{pipeline.core.num_steps} steps"))
    if out is not None:
        result.save(out)
    shown = result.to_json() | ({"out": str(out)} if out is not None else {})
    if as_json:
        print_json(shown)
    else:
        for name, value in shown.items():
            console.print(f"[bold]{escape(name)}[/] {escape(str(value))}", soft_wrap=True)
    pipeline.close()


def _transcribe(llm: LLM, sources: list[str], params: SamplingParams, language: str | None, as_json: bool) -> None:
    """Every recording window by window, all in one batch; their texts."""
    processor: Any = llm.processor
    if processor is None or "audio" not in processor.modalities:
        raise UnsupportedError(f"{llm.core.info.model} takes no audio; leave --audio out.")
    tokens = processor.prompt_tokens(language)
    recordings = [processor.windows(source) for source in sources]
    wanted = [one for windows in recordings for one in processor.prompts(windows, tokens)]
    with error_console.status("transcribing") as status:
        outputs = llm.generate(
            wanted,
            processor.sampling_params(params, len(tokens)),
            progress=_told(status),
        )
    answers = iter([output.outputs[0].token_ids for output in outputs])
    found = [processor.transcription(windows, [next(answers) for _ in windows], language) for windows in recordings]
    if as_json:
        print_json({"transcriptions": [asdict(one) for one in found], "candidates": llm.replacements()})
        return
    for source, one in zip(sources, found, strict=True):
        console.print(f"[bold]{escape(source)}[/] ({one.duration:.1f} s) {escape(one.text)}", soft_wrap=True)


def _with_media(llm: LLM, prompts: list[str], images: list[str] | None, videos: list[str] | None) -> list[Any]:
    """Pictures and videos stand ahead of a prompt, unless it says by placeholders where."""
    data = {name: items for name, items in (("image", images), ("video", videos)) if items}
    if not data:
        return list(prompts)
    if llm.processor is None:
        raise UnsupportedError(f"{llm.core.info.model} takes text only; leave --image and --video out.")
    found = []
    for prompt in prompts:
        marks = [llm.processor.placeholder(name) for name, items in data.items() for _ in items]
        ahead = "" if any(mark in prompt for mark in marks) else "".join(marks)
        found.append({"prompt": ahead + prompt, "multi_modal_data": data})
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _prompts(given: list[str], file: Path | None) -> list[str]:
    prompts = list(given)
    if file is not None:
        if not file.is_file():
            raise UsageError(f"--prompts-file {file} does not exist.")
        try:
            prompts += [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise UsageError(f"--prompts-file {file} is no UTF-8 text: {error}.") from error
    if not prompts:
        raise UsageError("Nothing is given: --prompt or --prompts-file; of a model without tokens --input NAME=VALUE.")
    return prompts
