# demo and test work on a machine that has only Python: each makes .venv when it is missing or out of date.
.PHONY: demo test check bench serve-demo

demo: .venv/.installed
	.venv/bin/fastkernels demo

test: .venv/.installed
	scripts/test

check: .venv/.installed
	scripts/check

bench: .venv/.installed
	.venv/bin/fastkernels kernels

serve-demo: .venv/.installed
	.venv/bin/python examples/client.py

.venv/.installed: pyproject.toml constraints.txt scripts/oracles-no-deps.txt
	scripts/install
