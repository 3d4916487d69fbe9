"""`fastkernels calibrate`: what is noise and what is unusable in a family's answers (the manifest of tier 3)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from typer import Argument, Option

from fastkernels import env
from fastkernels.calibration.calibrate import calibrate as measure
from fastkernels.calibration.plan import ALL, chosen_families, families
from fastkernels.calibration.release import (
    check_place,
    check_version,
    checkout_paths,
    write_copy,
    write_manifest,
    write_samples,
)
from fastkernels.calibration.versions import DRAFT
from fastkernels.cli.common import console, error_console, print_json
from fastkernels.errors import UsageError
from fastkernels.report.calibration_page import render_calibration
from fastkernels.report.publish import write_page
from fastkernels.scoring.manifest import MANIFEST_PATH, MANIFEST_VERSION


def calibrate(
    family: Annotated[str, Argument(help=f"One of {', '.join(families())}, or {ALL}.")],
    out: Annotated[
        Path | None, Option(help="The folder of samples, manifest and curves; a new one under the runs' home.")
    ] = None,
    write: Annotated[bool, Option("--write", help="Also change the manifest that scores are reckoned by.")] = False,
    seed: Annotated[int, Option(help="Of requests and damages.")] = 0,
    as_json: Annotated[bool, Option("--json", help="The samples as JSON on stdout.")] = False,
) -> None:
    """Measure a family's thresholds on a CPU: the noise of models against themselves, and the cliff of damaged ones."""
    chosen = chosen_families(family)
    if seed < 0:
        raise UsageError(f"--seed is {seed}; the least is 0.")
    places = checkout_paths() if write else None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # before the minutes that measuring takes
        check_place(out / "calibration.json", out / "manifest.json")
    if places is not None:
        check_place(places[1], places[0])
    command = f"fastkernels calibrate {family}" + (f" --seed {seed}" if seed else "") + (" --write" if write else "")
    folder = out or env.home() / f"{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}-calibrate-{family}"
    samples, done = folder / "calibration.json", set[str]()

    def keep(record: dict[str, Any]) -> None:
        write_samples(record, samples)
        done.update(record["families"])

    try:
        with error_console.status("starting") as status:
            record = measure(chosen, command, seed, status.update, keep)
    except BaseException:
        if done:
            error_console.print(
                f"{len(done)} of {len(chosen)} families are in {samples}; "
                f"`fastkernels calibrate FAMILY --out {folder}` adds another.",
                soft_wrap=True,
                markup=False,
            )
        raise
    whole = write_samples(record, samples)
    manifest = folder / "manifest.json"
    version = write_copy(record, manifest, manifest if manifest.exists() else MANIFEST_PATH)
    write_page(folder / "report.html", render_calibration(whole))
    if places is not None:
        _freeze(record, *places, folder)
    if as_json:
        print_json(record)
        return
    console.print(threshold_table(record))
    console.print(f"curves:   {folder / 'report.html'}", soft_wrap=True)
    console.print(f"manifest: {places[0] if places else manifest}", soft_wrap=True)
    if version == DRAFT and places is None:
        console.print(f"It is {DRAFT}: with other thresholds than {MANIFEST_VERSION}; nothing is judged by it.")


def _freeze(record: dict[str, Any], manifest: Path, samples: Path, folder: Path) -> None:
    """Both or neither. Errors: UsageError when the thresholds would change and the manifest's version would not."""
    try:
        check_version(record, manifest)
    except UsageError as error:
        raise UsageError(f"{error} What was measured is in {folder}.") from error
    write_samples(record, samples)
    write_manifest(record, manifest)


def threshold_table(record: dict[str, Any]) -> Table:
    """One row a family and dtype."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("family", min_width=9)
    table.add_column("dtype", min_width=8)
    for name in ("noise", "good", "bad"):
        table.add_column(name, justify="right", min_width=8)
    table.add_column("good decided by", overflow="fold")
    table.add_column("bad decided by", overflow="fold")
    for family, one in record["families"].items():
        for number, (dtype, good) in enumerate(one["good"].items()):
            bad = (f"{one['bad']['value']:.3g}", one["bad"]["decided_by"]) if number == 0 else ("", "")
            figures = (f"{good['largest']:.2g}", f"{good['value']:.3g}", bad[0])
            table.add_row(family if number == 0 else "", dtype, *figures, good["decided_by"], bad[1])
    return table
