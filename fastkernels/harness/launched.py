"""Which kernels one call launched, as PyTorch's profiler in the candidate's own process says: a claim, and no more.

Asked of a worker that has given all its answers and is ended next. No verdict, no time and no figure depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler import profile

MOST_NAMES = 40
MOST_CHARACTERS = 200

_COPIES = ("Memcpy", "Memset")


def names_of_call(module: nn.Module, arguments: Sequence[Any], device: torch.device) -> list[str]:
    """In the worker: of kernels on a GPU; on a CPU of PyTorch's operators, those that others call left out.

    The call before the one that is looked at may compile, or try kernels out.
    """
    module(*arguments)
    is_cuda = device.type == "cuda"
    # Not torch.profiler's, which imports the compiler: a second and more.
    with profile(use_device="cuda" if is_cuda else None, use_kineto=True) as profiler:
        module(*arguments)
        if is_cuda:
            torch.cuda.synchronize()
    events = profiler.function_events or ()
    if is_cuda:
        found = [e.name for e in events if e.device_type == DeviceType.CUDA and not e.name.startswith(_COPIES)]
    else:
        found = [event.name for event in events if _is_operator(event) and not _is_called_by_another(event)]
    return [name[:MOST_CHARACTERS] for name in list(dict.fromkeys(found))[:MOST_NAMES]]


def _is_operator(event: Any) -> bool:
    return "::" in event.name and not event.name.startswith("profiler::")


def _is_called_by_another(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None and not _is_operator(parent):
        parent = parent.cpu_parent
    return parent is not None


def read_names(reply: Mapping[str, Any]) -> list[str]:
    """In the judge: as many and as long as a page has room for, whatever came."""
    names = reply.get("names")
    texts = [n[:MOST_CHARACTERS] for n in names if isinstance(n, str)] if isinstance(names, list) else []
    return list(dict.fromkeys(text for text in texts if text.isprintable() and text.strip()))[:MOST_NAMES]
