"""Shipped implementation sets, one folder each; `fastkernels list --sets` shows them."""
