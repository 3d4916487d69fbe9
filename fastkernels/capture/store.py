"""A set of cases as a folder: manifest.json and the tensors' file that it names, every tensor once by its SHA-256.

Large tensors are stored as blocks, each once (blocks.py). What is loaded is verified. A set that is saved over another
has its tensors in a file of another name, and the manifest takes the old one's place last of all: whenever that is cut
short, the folder holds one of the two sets whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fastkernels.capture.blocks import pack, unpack
from fastkernels.capture.case import Case, decode_value, encode_value
from fastkernels.capture.digest import tensor_digest
from fastkernels.capture.moments import Moments
from fastkernels.capture.tensors import filled, kept_stride, named_tensors, with_stride
from fastkernels.context import ForwardContext, Phase
from fastkernels.errors import CaseFileError, EnvironmentProblem, UnknownNameError, UsageError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
TENSORS = "tensors.safetensors"
"""The file of a manifest that names none: of sets saved by earlier versions."""
_TENSORS_FILES = re.compile(r"tensors(-[0-9a-f]{16})?\.safetensors")
_PARTIAL = {MANIFEST: f".{MANIFEST}.partial", TENSORS: f".{TENSORS}.partial"}
_SET_FIELDS = ("model", "workload", "environment")


@dataclass
class CaseSet:
    """Cases and where they come from. Iteration gives cases with all their values; take none of them as writable.

    records: the cases as kept: a tensor that was too large is one without storage, and its moments.
    """

    records: list[Case]
    model: str = ""
    workload: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Case]:
        return (filled(case) for case in self.records)

    def __getitem__(self, index: int) -> Case:
        return filled(self.records[index])

    @property
    def ops(self) -> list[str]:
        return sorted({case.op for case in self.records})

    def filter(self, op: str | None = None, phase: Phase | None = None) -> CaseSet:
        """The cases of one op, of one phase.

        Errors: UnknownNameError when the set holds no case of the op.
        """
        if op is not None and op not in self.ops:
            raise UnknownNameError("captured op", op, self.ops)
        chosen = [c for c in self.records if op in (None, c.op) and phase in (None, c.phase)]
        return replace(self, records=chosen)

    def save(self, folder: Path | str) -> None:
        """Errors: UsageError of `check_folder`; EnvironmentProblem when the disk is full; the folder is as before."""
        folder = Path(folder)
        check_folder(folder)
        tensors: dict[str, Tensor] = {}
        body = {"schema_version": SCHEMA_VERSION, **{name: getattr(self, name) for name in _SET_FIELDS}}
        body["cases"] = [_case_to_json(case, tensors) for case in self.records]
        stored, body["layout"] = pack(tensors)
        data = safetensors.torch.save(stored)
        body["tensors_bytes"] = len(data)
        body["tensors_file"] = f"tensors-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
        body["sha256"] = _manifest_digest(body)
        _write(folder, body["tensors_file"], data, json.dumps(body, indent=1).encode())

    @classmethod
    def load(cls, folder: Path | str) -> CaseSet:
        """Errors: CaseFileError names the file, what was expected and what was found."""
        folder = Path(folder)
        body = _read_manifest(folder / MANIFEST)
        tensors = _read_tensors(tensors_file(folder, body), body)
        try:
            records = [_case_from_json(record, tensors) for record in body["cases"]]
        except (KeyError, TypeError, ValueError) as error:
            raise CaseFileError(f"{folder / MANIFEST}: a case cannot be read: {error!r}.") from error
        return cls(records, **{name: body[name] for name in _SET_FIELDS})


def check_folder(folder: Path) -> None:
    """Whether a case set can be written there: the folder is to be made, empty, or holds a case set.

    Errors: UsageError.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UsageError(f"{there} is a file; name a folder, which takes the case set.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{there} cannot be written, so {folder} cannot take a case set; name another folder.")
    if there != folder.absolute():
        return
    others = [p.name for p in there.iterdir() if p.name not in _PARTIAL.values() and not _is_of_a_set(p)]
    if others:
        raise UsageError(
            f"{folder} holds {min(others)}, which is no part of a case set; name a new or empty folder, or one with a "
            "case set, whose place the new one takes."
        )


def _is_of_a_set(path: Path) -> bool:
    if path.name != MANIFEST:
        return bool(_TENSORS_FILES.fullmatch(path.name)) and path.is_file()
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(body, dict) and {"schema_version", "cases", "tensors_bytes"} <= body.keys()


def tensors_file(folder: Path, body: Mapping[str, Any]) -> Path:
    """Where the tensors of a manifest are. Errors: CaseFileError when that would be somewhere else."""
    name = body.get("tensors_file", TENSORS)
    if not isinstance(name, str) or not _TENSORS_FILES.fullmatch(name):
        raise CaseFileError(f"{folder / MANIFEST} names {name!r} as its tensors' file, which is no name of one.")
    return folder / name


def _case_to_json(case: Case, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The case as JSON; its tensors go into `tensors` by content."""
    entries: dict[str, Any] = {}
    for name, tensor in named_tensors(case).items():
        stride = kept_stride(tensor)
        entry: dict[str, Any] = {} if stride is None else {"stride": list(stride)}
        if tensor.device.type == "meta":
            dtype = str(tensor.dtype).removeprefix("torch.")
            entry |= {"moments": asdict(case.moments[name]), "shape": list(tensor.shape), "dtype": dtype}
        else:
            entry["sha256"] = tensor_digest(tensor)
            tensors.setdefault(entry["sha256"], tensor.detach().cpu().contiguous().clone())
        entries[name] = entry
    context = case.context
    return {
        "op": case.op,
        "init": encode_value(case.init),
        "inputs": {name: None if isinstance(v, Tensor) else encode_value(v) for name, v in case.inputs.items()},
        "dtype": str(case.dtype).removeprefix("torch."),
        "phase": case.phase,
        "family": case.family,
        "count": case.count,
        "callers": list(case.callers),
        "outputs_digest": case.outputs_digest,
        "context": None
        if context is None
        else {
            "max_query_len": context.max_query_len,
            "max_seq_len": context.max_seq_len,
            "phase": context.phase,
            "num_decodes": context.num_decodes,
        },
        "tensors": entries,
    }


def _case_from_json(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Case:
    named: dict[str, dict[str, Tensor]] = {}
    moments = {}
    for name, entry in record["tensors"].items():
        part, _, rest = name.partition(".")
        named.setdefault(part, {})[rest] = _tensor_from_json(entry, tensors)
        if "moments" in entry:
            moments[name] = Moments(**entry["moments"])
    inputs = {n: named.get("inputs", {}).get(n, decode_value(v)) for n, v in record["inputs"].items()}
    context = record["context"]
    if context is not None:
        context = ForwardContext(**{**named["context"], **context, "phase": Phase(context["phase"])})  # type: ignore[arg-type]
    caches = named.get("caches", {})
    return Case(
        op=record["op"],
        init=decode_value(record["init"]),
        inputs=inputs,
        params=named.get("params", {}),
        dtype=_dtype(record["dtype"]),
        context=context,
        caches=tuple(caches[str(i)] for i in range(len(caches))),
        after=named.get("after", {}),
        phase=record["phase"] and Phase(record["phase"]),
        family=record["family"],
        outputs_digest=record["outputs_digest"],
        count=record["count"],
        callers=tuple(record["callers"]),
        moments=moments,
    )


def _tensor_from_json(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    if "moments" in entry:
        dense = torch.empty(entry["shape"], dtype=_dtype(entry["dtype"]), device="meta")
        return dense.new_empty_strided(entry["shape"], entry["stride"]) if "stride" in entry else dense
    tensor = tensors[entry["sha256"]]
    return with_stride(tensor, entry["stride"]) if "stride" in entry else tensor


def _dtype(name: str) -> torch.dtype:
    return decode_value({"$dtype": name})


def _manifest_digest(body: Mapping[str, Any]) -> str:
    text = json.dumps({k: v for k, v in body.items() if k != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CaseFileError(f"{path} does not exist: {path.parent} is not a case set. Make one with 'capture --out'.")
    try:
        body = json.loads(path.read_bytes())
    except ValueError as error:
        raise CaseFileError(f"{path} is not JSON (truncated?): {error}.") from error
    found = body.get("schema_version") if isinstance(body, dict) else None
    if found != SCHEMA_VERSION:
        raise CaseFileError(f"{path}: expected schema_version {SCHEMA_VERSION}, found {found!r}. Capture again.")
    digest = _manifest_digest(body)
    if body.get("sha256") != digest:
        raise CaseFileError(f"{path} was altered: expected sha256 {body.get('sha256')}, found {digest}.")
    return body


def _read_tensors(path: Path, body: Mapping[str, Any]) -> dict[str, Tensor]:
    if not path.is_file():
        raise CaseFileError(f"{path} does not exist; {MANIFEST} beside it names its tensors.")
    size, expected = path.stat().st_size, body["tensors_bytes"]
    if size != expected:
        raise CaseFileError(f"{path} is truncated or altered: expected {expected} bytes, found {size}.")
    try:
        tensors = unpack(safetensors.torch.load(path.read_bytes()), body["layout"])
    except SafetensorError as error:
        raise CaseFileError(f"{path} is not a safetensors file: {error}.") from error
    for name, tensor in tensors.items():
        if (digest := tensor_digest(tensor)) != name:
            raise CaseFileError(f"{path} was altered: expected a tensor of sha256 {name}, found {digest}.")
    wanted = {entry["sha256"] for c in body["cases"] for entry in c["tensors"].values() if "sha256" in entry}
    if missing := wanted - tensors.keys():
        raise CaseFileError(f"{path} lacks {len(missing)} tensors that {MANIFEST} names, the first {min(missing)}.")
    return tensors


def _write(folder: Path, name: str, tensors: bytes, manifest: bytes) -> None:
    """Both files under temporary names, then the renames, which need no room on the disk, the manifest's last; then the
    tensors of the set that was there are deleted."""
    partial = {kind: folder / name for kind, name in _PARTIAL.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in ((partial[TENSORS], tensors), (partial[MANIFEST], manifest)):
            with path.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        partial[TENSORS].replace(folder / name)
        partial[MANIFEST].replace(folder / MANIFEST)
        for path in folder.iterdir():
            if path.name != name and _TENSORS_FILES.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise EnvironmentProblem(
            f"{folder} cannot take a case set of {len(tensors) + len(manifest)} bytes: {reason}. What was there before "
            "is untouched."
        ) from error
    finally:
        for path in partial.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def environment(device: torch.device | str) -> dict[str, str]:
    """What a capture ran on, as far as its numbers depend on it."""
    is_cuda = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if is_cuda else "cpu"
    return {"torch": torch.__version__, "device": name, "num_threads": str(torch.get_num_threads())}
