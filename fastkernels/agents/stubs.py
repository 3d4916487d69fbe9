"""Candidate files to start from: the contract of an op, read from its baseline file, with forward left to write."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from fastkernels import env
from fastkernels.errors import EnvironmentProblem, UsageError
from fastkernels.registry import OpEntry, ops_of_module
from fastkernels.sets import CANDIDATE, TASKS_DIR, available_sets
from fastkernels.signatures import method_definition
from fastkernels.source import SourceModule, find_base, modules

_LEFT_OUT = ("forward", "reference", "cost")
_LINE_LENGTH = 120


def write_stubs(entries: Iterable[OpEntry], out: Path | None = None) -> list[Path]:
    """Write one file per baseline file that holds any of `entries`, by default into the user's candidate set.

    Errors: UsageError when a file is there already, or `out` as a word is another set's name; then nothing is written.
        EnvironmentProblem when `out` is no folder or cannot be written to.
    """
    own = env.candidate_dir() or TASKS_DIR / CANDIDATE
    if out is not None and str(out) in available_sets() and out.absolute() != own.absolute():
        raise UsageError(f"--out {out}: --candidates {out} is a set of that name already. Choose another folder.")
    out = out or own
    by_file = groupby(sorted(set(entries)), key=lambda e: e.module)
    texts = {out / (group := list(found))[0].file_name: stub_text(group) for _, found in by_file}
    if existing := [str(path) for path in texts if path.exists()]:
        raise UsageError(
            f"Already there, and stubs never overwrite: {', '.join(existing)}. Move them or choose another --out."
        )
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EnvironmentProblem(f"{out} cannot take the stub {path.relative_to(out)}: {error.strerror}.") from error
    return list(texts)


def stub_text(entries: list[OpEntry]) -> str:
    """The candidate file for ops of one baseline file."""
    return _Stub(modules()[entries[0].module], entries).text()


class _Stub:
    """Copies what the contract needs from one baseline file.

    Other ops of the file stay what they are: one that the constructor builds is imported from there, so that it
    can be replaced too; one that a wanted op derives from is copied under a private name, for under its own it
    would count as a replacement of that op.
    """

    def __init__(self, module: SourceModule, entries: list[OpEntry]) -> None:
        self.module = module
        self.entries = {e.class_name: e for e in entries}
        self.lines = module.path.read_text(encoding="utf-8").splitlines()
        self.tree = ast.parse("\n".join(self.lines))
        self.other_ops = {e.class_name for e in ops_of_module(module.name)} - self.entries.keys()
        self.bases = self._bases()
        self.copied_bases = self.bases & self.other_ops
        self.parts: set[str] = set()

    def text(self) -> str:
        body = "\n\n\n".join(self._blocks().values())
        for name in self.copied_bases:
            body = re.sub(rf"\b{name}\b", f"_{name}", body)
        return f"{self._docstring()}\n\n{self._imports(body)}{_gap(body)}{body}\n"

    def _bases(self) -> set[str]:
        """Classes of this file that a wanted op derives from."""
        found: set[str] = set()
        for class_name in self.entries:
            place = find_base(self.module, self._class(class_name))
            while place is not None and place[0] == self.module.name:
                found.add(place[1])
                place = find_base(self.module, self._class(place[1]))
        return found

    def _class(self, name: str) -> ast.ClassDef:
        node = self.module.definitions[name]
        assert isinstance(node, ast.ClassDef)
        return node

    def _blocks(self) -> dict[str, str]:
        """The wanted classes and every definition of the file that they need, in the file's order."""
        blocks: dict[str, str] = {}
        waiting = list(self.entries)
        while waiting:
            name = waiting.pop()
            if name in self.other_ops - self.copied_bases:
                self.parts.add(name)
                continue
            if name in blocks:
                continue
            node = self.module.definitions[name]
            blocks[name] = self._copy_class(node) if isinstance(node, ast.ClassDef) else self._segment(node)
            waiting += [n for n in _names(blocks[name]) if n in self.module.definitions]
        return dict(sorted(blocks.items(), key=lambda item: self.module.definitions[item[0]].lineno))

    def _segment(self, node: ast.stmt, after: int | None = None) -> str:
        """The lines of a statement, from line `after` on (decorators and comments before it included)."""
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        return "\n".join(self.lines[first if after is None else after : node.end_lineno]).strip("\n")

    def _copy_class(self, node: ast.ClassDef) -> str:
        """The class as it stands; a wanted op and its bases less their computations, with a forward to write."""
        entry = self.entries.get(node.name)
        if entry is None and node.name not in self.bases:
            return self._segment(node)
        start = end = node.body[0].lineno - 1
        text = self._segment(node).split("\n" + self.lines[start])[0]
        has_forward = False
        for statement in node.body:
            if not (isinstance(statement, ast.FunctionDef) and statement.name in _LEFT_OUT):
                blank_lines = 0 if end == start else _blank_after(self.lines, end)
                text += "\n" * (1 + blank_lines) + self._segment(statement, end)
            elif entry and statement.name == "forward" and not has_forward:
                has_forward = True
                text += self._forward(entry)
            end = statement.end_lineno or end
        return text if has_forward or entry is None else text + self._forward(entry)

    def _forward(self, entry: OpEntry) -> str:
        """The header and docstring of forward, wherever the class has it from, and a body that says what to do."""
        found = method_definition(entry, "forward")
        if found is None:
            raise UsageError(f"{entry.class_name} in {entry.file_name} has no forward; a stub needs its signature.")
        module, node = found
        lines = module.path.read_text(encoding="utf-8").splitlines()
        has_docstring = ast.get_docstring(node) is not None
        last = node.body[0].end_lineno if has_docstring else node.body[0].lineno - 1
        header = "\n".join(lines[node.lineno - 1 : last]).rstrip()
        message = f'"{entry.class_name}.forward has no kernel yet: write it here, or delete this file."'
        line = f"        raise NotImplementedError({message})"
        if len(line) > _LINE_LENGTH:
            line = f"        raise NotImplementedError(\n            {message}\n        )"
        return f"\n\n{header}\n{line}"

    def _docstring(self) -> str:
        first = (ast.get_docstring(self.tree) or self.module.path.stem).splitlines()[0]
        level, file = f"L{self.module.level}", self.module.path.name
        target = next(iter(self.entries.values())).name if len(self.entries) == 1 else self.module.path.stem
        about = (
            f"A candidate: wherever a model uses {' or '.join(self.entries)} of {level}/{file}, this file's is used "
            "instead. Names, signatures and spec are the contract; the rest is yours. To judge it:"
        )
        command = f"    fastkernels kernels --target {target} --candidates <the folder that holds {level}/>"
        return f'"""{first}\n\n{textwrap.fill(about, 112)}\n\n{command}\n"""'

    def _imports(self, body: str) -> str:
        """The file's imports, in its order and groups, reduced to the names that `body` reads."""
        used = set(_names(body)) | self.parts
        groups: list[list[str]] = [[]]
        end = None
        for node in self.tree.body:
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            if end is not None and node.lineno > end + 1:
                groups.append([])
            end = node.end_lineno
            is_future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
            kept = [a for a in node.names if is_future or (a.asname or a.name.split(".")[0]) in used]
            if kept:
                node.names = kept
                groups[-1].append(_wrapped(node))
        if self.parts:
            own = ast.ImportFrom(self.module.name, [ast.alias(name) for name in sorted(self.parts)], 0)
            groups[-1] = sorted([*groups[-1], _wrapped(own)], key=lambda line: line.split()[1])
        return "\n\n".join("\n".join(group) for group in groups if group)


def _names(text: str) -> list[str]:
    return [node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)]


def _blank_after(lines: list[str], end: int) -> int:
    """How many blank lines follow line number `end`."""
    count = 0
    while end + count < len(lines) and not lines[end + count].strip():
        count += 1
    return count


def _gap(body: str) -> str:
    return "\n\n\n" if body.startswith(("class ", "def ", "@")) else "\n\n"


def _wrapped(node: ast.Import | ast.ImportFrom) -> str:
    text = ast.unparse(node)
    if len(text) <= _LINE_LENGTH:
        return text
    head, names = text.split(" import ")
    return f"{head} import (\n" + "".join(f"    {name},\n" for name in names.split(", ")) + ")"
