"""Liger Kernel: Triton kernels written for training, here for their forward pass.

Needs an NVIDIA GPU and `pip install "liger-kernel>=0.8"`. Both norms run in the library's "gemma" mode, which
computes in fp32 throughout as the contract does. Not here: its rotary embedding, which turns query and key in
place, where the contract returns new tensors.

Source: Hsu et al. 2024, https://arxiv.org/abs/2410.10989; https://github.com/linkedin/Liger-Kernel
"""
