"""Train a tiny language model as the shipped ones were: `python examples/train_tiny.py --model trained-mixtral`.

It learns the text of Python's own standard library; --minutes ends it sooner. Interrupted, it goes on from its last
state when it is called again. What it has learnt:
`fastkernels generate --model runs/trained-mixtral --prompt "def "`.
"""

from __future__ import annotations

import typer

from fastkernels.cli.common import reports_errors
from fastkernels.training.command import train_language

if __name__ == "__main__":
    typer.run(reports_errors(train_language))
