"""Tier 2: a model served whole: throughput, latency under load, and the tokens that came out."""
