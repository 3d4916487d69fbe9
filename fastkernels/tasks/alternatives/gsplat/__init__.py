"""gsplat: CUDA kernels of 3D Gaussian splatting.

Needs an NVIDIA GPU, `pip install "gsplat>=1.5"` and an nvcc, with which it compiles its kernels at first use. How many
pairs of a tile and a Gaussian there are is a shape to it, which the host waits for.

Source: Ye et al. 2024, https://arxiv.org/abs/2409.06765; https://github.com/nerfstudio-project/gsplat
"""
