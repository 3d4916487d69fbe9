"""Train a tiny video classifier on scikit-learn's digits, as the shipped one was: `python examples/train_digits.py`.

Interrupted, it goes on from its last state when it is called again. `fastkernels generate --model runs/trained-digits
--input video=FILE` shows what it has learnt.
"""

from __future__ import annotations

import typer

from fastkernels.cli.common import reports_errors
from fastkernels.training.command import train_digits

if __name__ == "__main__":
    typer.run(reports_errors(train_digits))
