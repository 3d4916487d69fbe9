"""flash-linear-attention: Triton kernels of linear attention, here for their forward pass.

Needs an NVIDIA GPU and `pip install "flash-linear-attention>=0.5"`, whose transformers then uses it too. The library
takes and returns states one behind another: those of the slots are gathered before a call and written back after it,
which is in the times. Its convolutions keep as many inputs as the kernel is wide, the oldest of them never read again.

Source: Yang & Zhang 2024, https://github.com/fla-org/flash-linear-attention
"""
