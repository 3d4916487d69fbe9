"""The bodies of requests, as OpenAI's API and vLLM's extensions to it name them. Unknown fields are ignored.

https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fastkernels.engine import messages
from fastkernels.engine.messages import check_depth
from fastkernels.engine.multimodal import Processor
from fastkernels.engine.sampling_params import SamplingParams, SamplingParamsError, StructuredOutputsParams
from fastkernels.errors import UsageError
from fastkernels.server.errors import ApiError

MAX_STOPS = 64
MAX_STOP_LEN = 1000
_FAIL_FAST = Field(fail_fast=True)  # or a long list of the wrong kind gives an error for each item
Json = Annotated[Any, AfterValidator(check_depth)]
JsonObject = Annotated[dict[str, Any], AfterValidator(check_depth)]
TokenIds = Annotated[list[int], _FAIL_FAST]
Texts = Annotated[list[str], _FAIL_FAST]
Prompt = str | TokenIds | Texts | Annotated[list[TokenIds], _FAIL_FAST]


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=())


class StreamOptions(Body):
    include_usage: bool | None = None


class JsonSchema(Body):
    name: str | None = None
    schema_: JsonObject | bool | None = Field(None, alias="schema")


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Body):
    """vLLM's; one of them."""

    json_: JsonObject | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: Texts | None = None
    grammar: str | None = None
    json_object: bool | None = None


class GenerationBody(Body):
    """What completions and chat completions share."""

    model: str | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | Texts | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    # vLLM's
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    prompt_logprobs: int | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: Texts | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    return_token_ids: bool | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling_params(self, max_tokens: int, logprobs: int | None) -> SamplingParams:
        """Errors: SamplingParamsError names the field, its value and its limit."""
        self._check_stops()
        given: dict[str, Any] = {name: getattr(self, name) for name in _SAMPLING_FIELDS}
        given = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if v is not None}
        return SamplingParams(
            **given,
            max_tokens=max_tokens,
            logprobs=logprobs,
            logit_bias=_token_biases(self.logit_bias or {}),
            structured_outputs=self._structured(),
        )

    def check_stream(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options is given; it needs stream = true.", "stream_options")

    def _check_stops(self) -> None:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        longest = max(map(len, stops), default=0)
        if len(stops) > MAX_STOPS or longest > MAX_STOP_LEN:
            raise SamplingParamsError(
                "stop",
                f"stop holds {len(stops)} texts, the longest of {longest} characters; "
                f"at most {MAX_STOPS} of {MAX_STOP_LEN} are taken.",
            )

    def _structured(self) -> StructuredOutputsParams | None:
        wanted, form = self.structured_outputs, self.response_format
        if wanted is not None:
            return StructuredOutputsParams(
                json=wanted.json_,
                regex=wanted.regex,
                choice=None if wanted.choice is None else tuple(wanted.choice),
                grammar=wanted.grammar,
                json_object=bool(wanted.json_object),
            )
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            return StructuredOutputsParams(json_object=True)
        schema = form.json_schema.schema_ if form.json_schema is not None else None
        if not isinstance(schema, dict):
            raise SamplingParamsError(
                "response_format", "response_format of type json_schema needs json_schema.schema."
            )
        return StructuredOutputsParams(json=schema)


_SAMPLING_FIELDS = (
    *("n", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos", "min_tokens"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "prompt_logprobs", "allowed_token_ids"),
    *("skip_special_tokens", "include_stop_str_in_output", "bad_words"),
)


class CompletionBody(GenerationBody):
    prompt: Prompt
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    logprobs: int | None = None
    add_special_tokens: bool | None = None

    def check(self) -> None:
        self.check_stream()
        if self.suffix:
            raise ApiError(400, f"suffix is {self.suffix[:40]!r}; this server completes at the end only.", "suffix")
        if self.best_of not in (None, self.n or 1):
            raise ApiError(400, f"best_of is {self.best_of}; it must be n = {self.n or 1}.", "best_of")


class MediaUrl(Body):
    url: str


class InputAudio(Body):
    """OpenAI's; data is base64."""

    data: str
    format: Literal["wav", "mp3"]


class ContentPart(Body):
    """A text, or a picture, video or recording by its URL: http, https, data or, where the server allows it, file."""

    type: str
    text: str | None = None
    image_url: MediaUrl | str | None = None
    video_url: MediaUrl | str | None = None
    audio_url: MediaUrl | str | None = None
    input_audio: InputAudio | None = None


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[dict[str, Any]], AfterValidator(check_depth)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    def media(self) -> list[tuple[str, str]]:
        """Modality and URL of each part that is not a text, in order. Errors: ApiError."""
        try:
            return messages.media_of(self.as_given())
        except UsageError as error:
            raise ApiError(400, str(error), "messages") from error

    def for_template(self, processor: Processor | None = None, takes_parts: bool = False) -> dict[str, Any]:
        """As templates expect it. Errors: ApiError for parts that the model does not take, and for arguments of tool
        calls that are no JSON object."""
        try:
            return messages.for_template(self.as_given(), processor, takes_parts)
        except UsageError as error:
            raise ApiError(400, str(error), "messages") from error

    def as_given(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


class ChatBody(GenerationBody):
    messages: Annotated[list[Message], _FAIL_FAST]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Annotated[list[dict[str, Any]], AfterValidator(check_depth)] | None = None
    tool_choice: Json = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: JsonObject | None = None

    def check(self) -> None:
        self.check_stream()
        if not self.messages:
            raise ApiError(400, "messages is empty; at least 1 message is needed.", "messages")
        if self.prompt_logprobs is not None and self.stream:
            message = (
                f"prompt_logprobs is {self.prompt_logprobs}; a chat's stream does not tell them. Leave stream out."
            )
            raise ApiError(400, message, "prompt_logprobs")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, f"top_logprobs is {self.top_logprobs}; it needs logprobs = true.", "top_logprobs")
        if self.tool_choice not in (None, "auto", "none"):
            raise ApiError(400, "tool_choice must be 'auto' or 'none'; this server forces no tool call.", "tool_choice")

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class EmbeddingBody(Body):
    model: str | None = None
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None

    def check(self) -> None:
        if self.dimensions is not None:
            raise ApiError(400, f"dimensions is {self.dimensions}; embeddings have the model's size.", "dimensions")


class ImageBody(Body):
    """negative_prompt, guidance_scale, num_inference_steps and seed are extensions."""

    model: str | None = None
    prompt: str
    n: int | None = None
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png"] | None = None
    negative_prompt: str | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=1000)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=10_000)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**62)] | None = None


class TranscriptionBody(Body):
    """Of a request without a form. url is Groq's; max_completion_tokens, of each window, is vLLM's."""

    model: str | None = None
    url: str | None = None
    language: str | None = None
    prompt: str | None = None
    response_format: str | None = None
    temperature: float | None = None
    max_completion_tokens: int | None = None
    timestamp_granularities: Texts | None = None
    stream: bool | None = None


class TokenizeBody(Body):
    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], _FAIL_FAST] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    model: str | None = None
    tokens: TokenIds


class AbortBody(Body):
    request_id: str | Texts


def _token_biases(biases: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in biases.items()}
    except ValueError as error:
        raise SamplingParamsError("logit_bias", f"logit_bias is a map of token ids to numbers: {error}.") from error
