"""Tier 3: baseline and candidates inside whole models, over a fixed set of scenarios."""
