"""The folder of a site: what a build replaces and what it leaves, and the commands that add to a board and build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from leaderboard_boards import ALPHA, BETA, make_board
from report_runs import REQUEST, records, write_eval_run, write_run

from fastkernels.cli import main
from fastkernels.leaderboard import build
from fastkernels.leaderboard.build import build_site
from fastkernels.leaderboard.pages import AgentView, agent_views
from fastkernels.leaderboard.site_folder import MARKER
from fastkernels.leaderboard.store import Board


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    return make_board(tmp_path_factory.mktemp("board"))


@pytest.fixture(scope="module")
def entries(board: Board) -> list[dict[str, Any]]:
    return board.entries()


def test_a_build_replaces_an_earlier_one_whole(board: Board, entries: list[dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "site"
    built = build_site(entries, out)
    assert built.num_pages == len(list(out.rglob("*.html"))) == 11
    assert len(list(out.rglob("plotly*.js"))) == 1
    build_site([], out)
    assert not (out / "ops").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site"]


def test_a_build_leaves_what_no_build_wrote(
    board: Board, entries: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "site"
    build_site(entries, out)
    mine = [out / name for name in ("CNAME", ".git/HEAD", "ops/notes.txt")]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    build_site([], out)
    assert [path.read_text() for path in mine] == ["mine"] * 3
    assert [path.name for path in (out / "ops").iterdir()] == ["notes.txt"]
    assert not (out / "agents").exists()
    (out / "agents").mkdir()
    (out / "agents" / "alpha.html").write_text("mine")
    assert run(["build", "--board", str(board.path), "--out", str(out)]) == 2
    assert "agents/alpha.html is no file that a build wrote" in capsys.readouterr().err.replace("\n", "")
    assert (out / "agents" / "alpha.html").read_text() == "mine"


def test_a_build_removes_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    out, other = tmp_path / "site", tmp_path / "other.txt"
    build_site([], out)
    other.write_text("x")
    (out / MARKER).write_text(f"../other.txt\n{other}\n{(out / MARKER).read_text()}")
    build_site([], out)
    assert other.is_file()


def test_a_folder_with_other_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "board").mkdir()
    for out, words in (("mine", "holds files that are no site"), ("mine/thesis.txt", "is a file")):
        assert run(["build", "--board", str(tmp_path / "board"), "--out", str(tmp_path / out)]) == 2
        assert words in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_the_folder_that_one_stands_in_can_hold_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    monkeypatch.chdir(tmp_path / "site")
    assert build_site([], Path()).path == tmp_path / "site"
    assert (tmp_path / "site" / "index.html").is_file()


def run(words: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["leaderboard", *words])
    return int(ended.value.code or 0)


def test_the_command_adds_and_builds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernels = write_run(tmp_path / "run", records()[:1], request={**REQUEST, "quick": False})
    board = str(tmp_path / "board")
    assert run(["add", str(kernels), "--agent", "Mine", "--board", board]) == 0
    assert "kernels--mine--nvidia-h200.json" in capsys.readouterr().out
    assert run(["add", str(kernels), "--agent", "mine", "--board", board]) == 2
    assert "already" in capsys.readouterr().err
    evaluated = write_eval_run(tmp_path / "eval")
    assert run(["add", str(evaluated), "--agent", "Mine", "--board", board]) == 2
    assert "name one with --set" in capsys.readouterr().err
    assert run(["add", str(evaluated), "--agent", "Mine", "--set", "fast", "--board", board]) == 0
    assert run(["build", "--board", board, "--out", str(tmp_path / "site")]) == 0
    assert "2 entries of 1 agent:" in capsys.readouterr().out
    assert (tmp_path / "site" / "agents" / "mine.html").is_file()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["add"], 2, "leaderboard add RUN --agent NAME"),
        (["add", "nowhere", "--agent", "x"], 3, "no run folder nowhere"),
        (["build"], 2, "build --out DIR"),
        (["build", "--out", "x", "--agent", "y"], 2, "nothing else"),
        (["build", "--board", "nowhere", "--out", "x"], 2, "There is no board nowhere"),
    ],
)
def test_wrong_words_are_one_message(
    words: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(words) == code
    assert message in capsys.readouterr().err


def test_an_entry_that_no_page_can_be_made_of_is_named(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever no check foresaw."""

    def views(entries: list[dict[str, Any]]) -> list[AgentView]:
        if any(entry["agent"] == BETA and entry["kind"] == "eval" for entry in entries):
            raise OverflowError("math range error")
        return agent_views(entries)

    monkeypatch.setattr(build, "agent_views", views)
    assert run(["build", "--board", str(board.path), "--out", str(tmp_path / "site")]) == 3
    told = capsys.readouterr().err
    assert "eval--beta--few--a-processor-with-8-cores.json holds what cannot be shown (OverflowError: math" in told
    assert not (tmp_path / "site").exists()


def test_an_op_of_a_long_name_has_a_page_that_a_disk_takes(entries: list[dict[str, Any]], tmp_path: Path) -> None:
    alpha = next(e for e in entries if e["agent"] == ALPHA and e["kind"] == "kernels")
    ops = [{**alpha["ops"][0], "op": "x" * 300}, {**alpha["ops"][0], "op": "x" * 299}]
    built = build_site([{**alpha, "ops": ops}], tmp_path / "site")
    assert len(list((built.path / "ops").iterdir())) == 2
