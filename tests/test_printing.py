"""What reaches a terminal: hostile names stay text, numbers stay whole, and no encoding ends a command."""

from __future__ import annotations

import ast
import errno
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from fcntl import ioctl
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from scaledit import terminal
from scaledit.cli import main
from scaledit.data.names import as_text
from scaledit.data.sets import digits
from scaledit.errors import printable
from scaledit.images import to_uint8
from scaledit.progress import TrainingProgress
from scaledit.training.events import CorruptCheckpoint, Started

SOURCE = Path(__file__).parent.parent / "src" / "scaledit"
HOSTILE = (
    "set[/v2]",
    "[bold]x[/bold]",
    "a[red]",
    ":smile:",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "line\nbreak\rback",
    "left\u202eright",
    "caf\udce9",
    "{task}",
    "%s%(prog)s",
    "\x9b2J",
    "tab\tand del\x7f",
    "größe 猫 🐈",
)
RESULT = {"name": "x", "fid": 2.2712, "fid_std": 0.0123, "fid_real": 1.5, "protocol": {"num": 50000}}


def printed(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a command in this process, through real UTF-8 streams."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    for stream in (out, err):
        stream.flush()
    return code, *(stream.buffer.getvalue().decode() for stream in (out, err))


def harmless(text: str) -> bool:
    """Nothing in it moves a cursor, colors, rings, or turns the direction of writing."""
    return all(character.isprintable() or character in "\n\u200d" for character in text)


NAMES = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=()), min_size=1, max_size=20),
    st.text(st.sampled_from("[]/\\:{}\x1b\u202e\n boldred"), min_size=1, max_size=20),
)


def file_name(name: str) -> str:
    """As a name that the system takes: no slash, and what UTF-8 lacks as the bytes of another encoding."""
    name = re.sub(r"[\ud800-\udc7f\udd00-\udfff]", "\udcff", name.replace("/", "|"))
    return f"n{name}n"


@settings(max_examples=60, deadline=None)
@given(name=NAMES)
@example(name="set[/v2]")
@example(name="caf\udce9")
def test_names_are_printed_as_they_are_and_do_nothing(name: str, tmp_path_factory: pytest.TempPathFactory):
    """Of files, of classes and of recipes; by commands, in errors, in progress."""
    folder = tmp_path_factory.mktemp("names")
    name = file_name(name)
    result = folder / f"{name}.json"
    result.write_text(json.dumps({**RESULT, "warnings": [name.encode("utf-8", "replace").decode()]}))
    images = folder / "images" / name
    images.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(images / "0.png")
    recipe = folder / f"{name}.toml"
    recipe.write_text('extends = "digits"\n')
    for arguments, expected, shown in (
        (["evaluate", "--compare", str(result)], 0, printable(name)),
        (["data", "inspect", str(folder / "images")], 0, printable(as_text(name))),
        (["plan", str(recipe)], 0, printable(name)),
        (["paper", "--study", str(folder / name)], 2, None),
        (["plan", str(folder / f"{name}x.toml")], 2, printable(name)),
        (["plan", "--gpu", name, "digits"], 2, None),
    ):
        code, out, err = printed(arguments)
        assert code == expected, (arguments, err)
        assert harmless(out + err)
        assert shown is None or shown in out + err
    screen = io.StringIO()
    console = terminal.console()
    console.file = screen
    with TrainingProgress(console) as progress:
        progress(Started(name, 0, 4, name, 1, 100, 100, 16))
        progress(CorruptCheckpoint(0, Path(name), f"{name} is corrupt"))
    assert harmless(screen.getvalue()) and screen.getvalue().count(printable(name)) >= 4


@pytest.mark.parametrize("name", HOSTILE)
def test_a_progress_bar_draws_any_name(name: str):
    """On a terminal, where rich renders descriptions: its own codes only."""
    from rich.console import Console

    from scaledit.progress import bar

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200, color_system=None)
    with TrainingProgress(console) as progress:
        progress(Started(name, 0, 4, "cpu", 1, 100, 100, 16))
    with bar(console) as shown:
        shown.add_task(printable(name), total=1, note="")
    codes = r"\x1b\[\??[0-9;]*[A-Za-z]|\r"  # hides the cursor, clears the line
    drawn = re.sub(codes, "", screen.getvalue())
    assert harmless(drawn) and f"training {printable(name)}" in drawn


ESCAPES = ("printable", "dumps")


def _is_escaped(text: ast.expr) -> bool:
    """Whether nothing in the source of a printed text can be a name as it came."""
    match text:
        case ast.Constant():
            return True
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in ESCAPES
        case ast.JoinedStr(values=values):
            return all(_is_escaped(one) for one in values)
        case ast.FormattedValue(value=value):
            return _is_escaped(value)
    return False


def test_nothing_is_printed_as_it_came():
    """Outside of scaledit.terminal: print takes what `printable` gave or JSON, and rich's Console nobody."""
    scripts = {"terminal.py", "launch.py", "evaluation/small.py", "evaluation/emoji.py"}
    wrong = []
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        for node in [] if name in scripts else ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="print"), args=arguments):
                    fine = all(map(_is_escaped, arguments))
                case ast.Call(func=ast.Name(id="Console") | ast.Attribute(attr="print")):
                    fine = False
                case _:
                    continue
            wrong += [] if fine else [f"{name}:{node.lineno}"]
    assert not wrong


def on_terminal(arguments: Sequence[str], columns: int) -> str:
    """What a command prints on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "scaledit.cli", *arguments]
    child = subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    read = b""
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError as error:  # how Linux says that the other end is closed
            assert error.errno == errno.EIO
            break
        if not piece:
            break
        read += piece
    os.close(ours)
    assert child.wait() == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", read.decode()).replace("\r\n", "\n")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two results with every figure there is, of 256 squared: as wide as tables get."""
    from scaledit.evaluation.metric import built_in_columns

    folder = tmp_path_factory.mktemp("wide")
    rng = np.random.default_rng(0)
    paths = []
    for name in ("ours, after a long training", "theirs"):
        figures = {
            key: float(value)
            for key, value in zip(built_in_columns(), rng.uniform(1, 2000, 99), strict=False)
        }
        spread = {f"{key}_std": value / 100 for key, value in figures.items()}
        protocol = {"image_size": [256, 256], "num": 50_000}
        path = folder / f"{name}.json"
        path.write_text(json.dumps({"name": name, **figures, **spread, "protocol": protocol}))
        paths.append(path)
    return paths


def numbers(command: str, wide: list[Path]) -> list[str]:
    """Every number that a command's table holds, as it is to be printed."""
    from scaledit.evaluation.result import Result

    if command == "evaluate":
        shown = [f"{figure}" for path in wide for figure in Result.read(path).metrics.values()]
        return [number for one in shown for number in one.split(" ± ")]
    rows = json.loads(printed([command, "--json"])[1])
    if command == "models":
        return [f"{row['params'] / 1e6:.2f}" for row in rows] + [f"{row['gflops']:.2f}" for row in rows]
    return [
        cell for table in rows for row in table["rows"] for cell in row.values() if re.match(r"[\d.]+$", cell)
    ]


@pytest.mark.parametrize("columns", [40, 60, 80, 120, None])
@pytest.mark.parametrize("command", ["evaluate", "models", "paper"])
def test_no_number_is_lost_or_broken(command: str, columns: int | None, wide: list[Path]):
    """In a pipe (None) as in terminals: each number of the result stands whole in one line of the screen."""
    arguments = [command, *(["--compare", *map(str, wide)] if command == "evaluate" else [])]
    said = printed(arguments)[1] if columns is None else on_terminal(arguments, columns)
    lines = said.splitlines()
    expected = numbers(command, wide)
    assert len(expected) > 30
    words = " ".join(lines if columns is None else (piece for line in lines for piece in cut(line, columns)))
    found = words.split()
    for number in set(expected):
        assert found.count(number) >= expected.count(number), number
    assert "…" not in said
    if columns is None:
        assert max(map(len, lines)) > 60 if command == "models" else max(map(len, lines)) > 80


CELLS = st.text(st.sampled_from("ab1.± %猫é-/"), max_size=30)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    columns=st.sampled_from([40, 60, 80, 120]) | st.integers(20, 200),
    rows=st.integers(1, 6).flatmap(lambda n: st.lists(st.tuples(*[CELLS] * n), min_size=2, max_size=5)),
)
def test_every_cell_of_a_table_is_printed_whole(
    columns: int, rows: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
):
    """At every width: a cell is broken between words only."""
    monkeypatch.setattr(terminal, "_columns", lambda: columns)
    out = io.StringIO()
    with redirect_stdout(out):
        terminal.table(rows[0], rows[1:])
    words = out.getvalue().split()
    for cell in (cell for row in rows[1:] for cell in row):
        wanted = cell.split()
        assert not wanted or any(words[i : i + len(wanted)] == wanted for i in range(len(words)))


def cut(line: str, columns: int) -> list[str]:
    """As a terminal breaks a line that is too long."""
    return [line[i : i + columns] for i in range(0, len(line), columns)] or [""]


def test_a_table_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(terminal, "_columns", lambda: 20)
    terminal.table(["", "FID", "a long name", "none"], [["ours", "2.27 ± 0.01", "1234567.5", ""]], "Title")
    assert capsys.readouterr().out.splitlines() == [
        "Title", "ours", "  FID", "    2.27 ± 0.01", "  a long name", "    1234567.5"
    ]  # fmt: skip
    monkeypatch.setattr(terminal, "_columns", lambda: 80)
    terminal.table(["", "FID", "IS"], [["ours", "2.27", "278.24"], ["猫", "9", "1"]])
    assert capsys.readouterr().out.splitlines() == [
        "       FID      IS",
        "ours  2.27  278.24",
        "猫       9       1",
    ]
    monkeypatch.setattr(terminal, "_columns", lambda: 30)
    terminal.facts([("extractor", "inception 6726825d, at 299 pixels")], width=10)
    assert capsys.readouterr().out.splitlines() == [
        "  extractor inception 6726825d,",
        "            at 299 pixels",
    ]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_no_encoding_ends_a_command(encoding: str, wide: list[Path], tmp_path: Path):
    """One process for all commands; the names in it are beyond any of these."""
    named = tmp_path / "größe 猫.json"
    named.write_bytes(wide[0].read_bytes())
    calls = [
        ["models"],
        ["paper"],
        ["recipes"],
        ["plan", "imagenet256-xl2", "--gpu", "h100"],
        ["plan", "--budget", "1e20"],
        ["evaluate", "--compare", str(named)],
        ["--help"],
        ["plan", "größe 猫"],
    ]
    code = (
        "import json, sys; from scaledit.cli import main; print([main(c) for c in json.loads(sys.argv[1])])"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LANG": "C", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(calls)], capture_output=True, env=environment
    )
    assert done.stdout.splitlines()[-1] == b"[0, 0, 0, 0, 0, 0, 0, 2]", done.stderr
    assert done.stdout.decode(encoding) and b"Traceback" not in done.stderr
    assert b"\\u732b" in done.stdout and b"\\u732b" in done.stderr


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "set[" / "v2].npz"  # [/v2] closes a tag that nobody opened
    path.parent.mkdir()
    images = to_uint8(digits(held_out=True).images)
    np.savez(path, arr_0=images)
    return path


FAST = ["--reference", "digits", "--metrics", "fd_digits"]


def test_a_name_of_markup_is_measured_to_the_end(samples: Path, tmp_path: Path):
    code, out, err = printed(["evaluate", str(samples), *FAST, "--json", str(tmp_path / "r.json")])
    assert code == 0, err
    kept = json.loads((tmp_path / "r.json").read_text())
    assert "set[/v2]" in out and f"{kept['fd_digits']:.4g}" in out


@pytest.mark.parametrize("place", ["a folder", "below a file", "too long"])
def test_evaluate_refuses_before_measuring_what_it_could_not_write(
    place: str, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from scaledit.evaluation.judge import Judge

    monkeypatch.setattr(Judge, "evaluate", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").touch()
    out = {
        "a folder": tmp_path,
        "below a file": tmp_path / "file" / "result.json",
        "too long": tmp_path / f"{'n' * 252}.json",
    }[place]
    before = sorted(tmp_path.iterdir())
    code, said, err = printed(["evaluate", str(samples), *FAST, "--json", str(out)])
    assert code == 2 and f"--json {out}" in err and err.count("\n") == 1 and not said
    assert sorted(tmp_path.iterdir()) == before


def test_figures_are_printed_though_their_file_cannot_be_written(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The folder goes while it is measured: the figures, and the JSON itself, come on stdout."""
    from scaledit.evaluation.judge import Judge

    folder, score = tmp_path / "there", Judge.evaluate
    folder.mkdir()

    def vanish(*given: object):
        folder.rmdir()
        folder.touch()
        return score(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(Judge, "evaluate", vanish)
    code, said, err = printed(["evaluate", str(samples), *FAST, "--json", str(folder / "result.json")])
    assert code == 1 and f"{folder / 'result.json'} could not be written" in err
    kept = json.loads(said.splitlines()[-1])
    assert f"{kept['fd_digits']:.4g}" in said.splitlines()[1]


def test_a_device_is_written_to_and_not_replaced(samples: Path, tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        try:
            assert printed(["evaluate", str(samples), *FAST, "--json", str(pipe)])[0] == 0
            told = reader.communicate()[0]
        finally:
            reader.kill()
    assert json.loads(told)["fd_digits"] > 0 and pipe.is_fifo()


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": []},
        {"protocol": {"image_size": 5}},
        {"protocol": {"image_size": [{}, "x"]}},
        {"fid_std": float("inf")},
        {"fid_std": -1},
        {"fid_std": "x"},
        {"fid": 10**400},
        {"warnings": 7},
        {"name": None, "fid": None},
    ],
    ids=str,
)
def test_compare_refuses_odd_results_or_shows_them(change: dict[str, object], tmp_path: Path):
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({**RESULT, "warnings": [], **change}))
    code, out, err = printed(["evaluate", "--compare", str(path)])
    assert (code, err.count("\n")) in ((0, 0), (2, 1)), err
    assert "odd" in (out if code == 0 else err)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluate", "x", "--num", "1e12"], "--num must be at most 10000000, got 1000000000000"),
        (["evaluate", "x", "--num", "1000000000000"], "--num must be at most 10000000, got 1000000000000"),
        (["evaluate", "x", "--num", "1"], "--num must be at least 2, got 1"),
        (["evaluate", "x", "--num", "1.5"], "--num must be a whole number from 2 to 10000000, got '1.5'"),
        (["evaluate", "x", "--seeds", "1000000000"], "--seeds must be at most 1000"),
        (["evaluate", "x", "--seed", "-1"], "--seed must be at least 0"),
        (["evaluate", "x", "--seed", str(2**64)], "--seed must be at most"),
        (["evaluate", "x", "--seed", "1.5"], "--seed must be a whole number"),
        (["evaluate", "x", "--steps", "nan"], "--steps must be a whole number"),
        (["study", "digits", "--workers", "1000000000"], "--workers must be at most 1024"),
        (["study", "digits", "--workers", "0"], "--workers must be at least 1"),
        (["train", "digits", "--nproc", "999999"], "--nproc must be at most 1024"),
        (["evaluate", "--compare", "x.json", "--json", "y.json"], "--json FILE keeps what is measured"),
        (["study", "paper", "--out", "/dev/null"], "/dev/null is not a folder"),
        (["reference", ".", "--out", "/dev/null/x.npz"], "--out /dev/null/x.npz cannot be written"),
    ],
)
def test_what_no_command_can_do_is_refused_in_a_sentence(arguments: list[str], says: str):
    code, out, err = printed(arguments)
    assert (code, out) == (2, "")
    assert says in err and err.count("\n") == 1
