"""The static site of a board: pages that open from a folder, share one plotly.js and ask no server for anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import fastkernels
from fastkernels.errors import FastKernelsError, InputFileError
from fastkernels.leaderboard.conditions import in_words
from fastkernels.leaderboard.figures import SITE_PALETTE, fast_p_curves, op_errors, op_forest
from fastkernels.leaderboard.metrics import EVAL_METRICS, KERNELS_METRICS
from fastkernels.leaderboard.pages import agent_views, curve_name, curves, heat_map, op_sources, op_views
from fastkernels.leaderboard.ranking import manifests, published_rows, rank_tables
from fastkernels.leaderboard.site_folder import earlier_files, replace_files
from fastkernels.leaderboard.store import Board, slug
from fastkernels.report.accounting import PolicyRow, entry_tolerances, policy_rows
from fastkernels.report.damage import blaming
from fastkernels.report.figures import PALETTE
from fastkernels.report.html import environment, template_text
from fastkernels.report.sources import highlighted
from fastkernels.report.view import command
from fastkernels.scoring.manifest import MANIFEST_PATH, Manifest, load_manifest

Json = dict[str, Any]

PLOTLY = "plotly.min.js"
_TEMPLATES = "fastkernels.leaderboard.templates"


@dataclass(frozen=True)
class Built:
    """What a build wrote: pages and bytes, plotly.js apart."""

    path: Path
    num_pages: int
    num_bytes: int


def build_site(entries: Sequence[Json], out: Path) -> Built:
    """Write the site into `out`, in the place of an earlier one; what no build wrote there stays.

    Errors: UsageError when `out` holds files and no site, or a page's place is taken by such a file.
    """
    earlier = earlier_files(out)
    files = site_files(entries)
    replace_files(out, {**files, PLOTLY: get_plotlyjs()}, earlier)
    num_pages = sum(name.endswith(".html") for name in files)
    return Built(out.resolve(), num_pages, sum(len(text.encode()) for text in files.values()))


def build_board(board: Board, out: Path) -> Built:
    """The site of all entries of a board. Errors: as Board.files and build_site; InputFileError names the entry that no
    page can be made of."""
    files = board.files()
    with blaming(board.path, InputFileError):
        try:
            return build_site(board.entries(), out)
        except FastKernelsError:
            raise
        except Exception:
            for path, entry in files.items():
                with blaming(path, InputFileError):
                    site_files([entry])
            raise


def site_files(entries: Sequence[Json]) -> dict[str, str]:
    """Texts by their places, all but plotly.js."""
    links = _Links(entries)
    files = {"site.css": _style(), "site.js": template_text("report.js") + _text("site.js")}
    files["index.html"] = _index(entries, links)
    files["methods.html"] = _page("methods.html", "", {}, links, **_methods(entries))
    for view in op_views(entries):
        judged = [entry for entry, _ in view.found]
        named = [(curve_name(entry, judged), op) for entry, op in view.found]
        plots = {"forest": op_forest(named), "errors": op_errors(named)}
        files[links.op(view.name)] = _page("op.html", "../", plots, links, view=view, sources=op_sources(view))
    for agent in agent_views(entries):
        values = {"agent": agent, "command": _command, "policies": _policies, "tolerances": entry_tolerances}
        files[links.agent(agent.name)] = _page("agent.html", "../", {}, links, **values)
    return files


def _methods(entries: Sequence[Json]) -> Json:
    """manifest: this program's, whose thresholds are shown where an entry has it or none has any."""
    metrics = {"Whole models": EVAL_METRICS, "Kernels": KERNELS_METRICS}
    titles = dict.fromkeys(m.title for columns in metrics.values() for m in columns if m.has_interval)
    known, own = manifests(entries), _manifest()
    is_known = own is not None and (not known or (own.version, own.sha256) in known)
    return {
        "manifests": known,
        "manifest": own if is_known else None,
        "metrics": metrics,
        "with_interval": list(titles),
    }


def _index(entries: Sequence[Json], links: _Links) -> str:
    tables = rank_tables(entries)
    metrics = {m.key: m for table in tables for m in table.metrics}
    levels = list(dict.fromkeys(row.level for table in tables for row in table.rows if row.level))
    plots = {
        "items": fast_p_curves(curves(entries, "eval"), "items"),
        "ops": fast_p_curves(curves(entries, "kernels"), "L1 and L2 ops"),
    }
    return _page(
        "index.html",
        "",
        plots,
        links,
        tables=tables,
        metrics=list(metrics.values()),
        levels=levels,
        hardware=sorted({e["hardware"] for e in entries}),
        published=published_rows(),
        heat=heat_map(entries),
        ops=op_views(entries),
        num_entries=len(entries),
    )


class _Links:
    """Places of pages by the names they are of; no two are one."""

    def __init__(self, entries: Sequence[Json]) -> None:
        self._ops = _places("ops", [view.name for view in op_views(entries)])
        agents = agent_views(entries)
        self._agents = _places("agents", [view.name.casefold() for view in agents])
        self._numbers = {id(entry): i for view in agents for i, entry in enumerate(view.entries, 1)}

    def op(self, name: str) -> str:
        return self._ops[name]

    def has_op(self, name: str) -> bool:
        return name in self._ops

    def agent(self, name: str) -> str:
        return self._agents[name.casefold()]

    def shared(self, entry: Json, name: str) -> str:
        """Of a text that stands in for many ops: its place on the agent's page."""
        return f"{self.agent(entry['agent'])}#shared-{self._numbers[id(entry)]}-{name}"


def _places(folder: str, names: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        stem, number = slug(name), 1
        while (place := f"{folder}/{stem}{f'-{number}' if number > 1 else ''}.html") in found.values():
            number += 1
        found[name] = place
    return found


def _page(template: str, root: str, plots: dict[str, Json | None], links: _Links, **values: Any) -> str:
    """root: the way to the site's folder from the page's."""
    drawn = {name: plot for name, plot in plots.items() if plot}
    theme = _text("theme.js")
    digest = base64.b64encode(hashlib.sha256(theme.encode()).digest()).decode()
    return (
        _environment()
        .get_template(template)
        .render(
            root=root,
            plots=drawn,
            palette=SITE_PALETTE,
            plotly=PLOTLY,
            theme=Markup(theme),
            policy=f"default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self' 'unsafe-inline'; "
            "img-src data: blob:; base-uri 'none'; form-action 'none'",
            version=fastkernels.__version__,
            links=links,
            highlighted=highlighted,
            in_words=in_words,
            **values,
        )
    )


def _style() -> str:
    palette = "".join(f"--{name}: light-dark({light}, {dark}); " for name, (light, dark) in PALETTE.items())
    return f":root {{ {palette}}}\n{template_text('style.css')}{_text('site.css')}"


@cache
def _environment() -> jinja2.Environment:
    return environment().overlay(loader=jinja2.FunctionLoader(_template))


def _template(name: str) -> str:
    """The site's own, or a report's that it shares."""
    return _text(name) if resources.files(_TEMPLATES).joinpath(name).is_file() else template_text(name)


def _text(name: str) -> str:
    return resources.files(_TEMPLATES).joinpath(name).read_text(encoding="utf-8")


def _manifest() -> Manifest | None:
    return load_manifest() if MANIFEST_PATH.is_file() else None


def _policies(entry: Json) -> list[PolicyRow]:
    return policy_rows(entry["agent"], entry["targets"], entry["ops"])


def _command(entry: Json) -> str:
    return command({"kind": entry["kind"], "request": entry["run"]["request"]})
