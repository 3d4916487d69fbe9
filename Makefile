# demo and test work on a machine that has only Python: each makes .venv when it is missing or out of date.
.PHONY: demo test test-slow check bench serve-demo

demo: .venv/.installed
	.venv/bin/fastkernels demo

test: .venv/.installed
	scripts/test

test-slow: .venv/.installed
	scripts/test-slow

check: .venv/.installed
	scripts/check

bench: .venv/.installed
	.venv/bin/fastkernels kernels

serve-demo: .venv/.installed
	.venv/bin/python examples/client.py

.venv/.installed: pyproject.toml constraints.txt scripts/oracles-no-deps.txt
	scripts/install
