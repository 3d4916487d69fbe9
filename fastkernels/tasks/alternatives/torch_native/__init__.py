"""The operators that PyTorch itself ships: fused where it has them, no compiler, no kernel of ours.

Attention gathers the pages of a sequence and calls scaled_dot_product_attention: right for any lengths, and
slow for many short ones, since PyTorch's own paged attention is not in every version this project runs on. Ops whose
production path is PyTorch's own call, such as convolutions and dense attention, are not here.

Source: https://docs.pytorch.org/docs/stable/nn.functional.html
"""
