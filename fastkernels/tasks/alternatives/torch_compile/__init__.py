"""torch.compile of the definitions of L1 and L2 ops: what a compiler makes of plain PyTorch.

Each op is compiled at its first call, with dynamic shapes. A CPU needs a C++ compiler, a GPU needs Triton.
Definitions that read lengths on the host (attention over sequences) break into several graphs and stay right.
One op compiles at most torch._dynamo.config.recompile_limit variants; further ones run eagerly.

Source: Ansel et al. 2024, https://doi.org/10.1145/3620665.3640366;
        https://docs.pytorch.org/docs/stable/generated/torch.compile.html
"""
