"""Fixtures of several test files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import Forks
from report_runs import write_run

from fastkernels.calibration import subject
from fastkernels.report.load import load_results


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Of scripts that each need a process of their own."""
    with Forks() as running:
        yield running


@pytest.fixture(scope="module")
def mixtral() -> Iterator[subject.Subject]:
    """A language model to calibrate, and two requests of few tokens."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(subject, "NUM_PLACES", 12)
        yield subject.Subject("tiny-mixtral", "float32", 2)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without a run, made once: its migrations take seconds."""
    from mlflow import MlflowClient

    from fastkernels.report.track import EXPERIMENT, log_run

    root = tmp_path_factory.mktemp("store")
    log_run(write_run(root / "none", []), load_results(root / "none"), f"sqlite:///{root / 'mlflow.db'}")
    store = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    for run in store.search_runs([store.get_experiment_by_name(EXPERIMENT).experiment_id]):
        store.delete_run(run.info.run_id)
    return root / "mlflow.db"


@pytest.fixture
def uri(template: Path, tmp_path: Path) -> str:
    """Of an MLflow store of the test's own."""
    copy = tmp_path / "mlflow.db"
    copy.write_bytes(template.read_bytes())
    return f"sqlite:///{copy}"
