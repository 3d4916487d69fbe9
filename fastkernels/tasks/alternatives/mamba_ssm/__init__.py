"""mamba-ssm: the Triton kernels of Mamba-2's authors.

Needs an NVIDIA GPU and `pip install "mamba-ssm>=2.3"`. Where prompts continue earlier ones the library takes one
sequence a call: the host waits for their lengths, and each has launches of its own.

Source: Dao & Gu 2024, https://arxiv.org/abs/2405.21060; https://github.com/state-spaces/mamba
"""
