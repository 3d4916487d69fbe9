"""Traffic mixes, the shipped prompts and the tokenizer of the tiny models."""

from fastkernels.workloads.prompts import prompts
from fastkernels.workloads.tokenizer import byte_tokenizer
from fastkernels.workloads.workload import WORKLOADS, Workload, find_workload

__all__ = ["WORKLOADS", "Workload", "byte_tokenizer", "find_workload", "prompts"]
