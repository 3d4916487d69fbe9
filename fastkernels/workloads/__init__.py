"""Traffic mixes, production traces, the shipped prompts and recording, and the tokenizer of the tiny models."""

from fastkernels.workloads.prompts import prompts
from fastkernels.workloads.speech import SPEECH_RATE, speech
from fastkernels.workloads.tokenizer import byte_tokenizer
from fastkernels.workloads.trace import TraceWorkload, trace_facts
from fastkernels.workloads.traffic import Traffic, TrafficRequest, capped
from fastkernels.workloads.workload import WORKLOADS, Workload, find_traffic, find_workload, traffic_names

__all__ = [
    "SPEECH_RATE",
    "WORKLOADS",
    "TraceWorkload",
    "Traffic",
    "TrafficRequest",
    "Workload",
    "byte_tokenizer",
    "capped",
    "find_traffic",
    "find_workload",
    "prompts",
    "speech",
    "trace_facts",
    "traffic_names",
]
