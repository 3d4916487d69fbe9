"""causal-conv1d: CUDA kernels of Mamba's short convolution.

Needs an NVIDIA GPU and `pip install "causal-conv1d>=1.6"`. Where prompts continue earlier ones the library takes one
sequence a call: the host waits for their lengths, and each has a launch of its own.

Source: Gu & Dao 2023, https://arxiv.org/abs/2312.00752; https://github.com/Dao-AILab/causal-conv1d
"""
