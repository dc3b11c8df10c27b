"""The package as users get it: the wheel's content and metadata, the wheel at work outside of the repository,
and the files that describe the project."""

from __future__ import annotations

import email
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from scaledit import __version__
from tiny import TINY

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = "https://github.com/scaledit/scaledit"
LARGEST = 2_000_000
"""Bytes of the largest file in the wheel."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools writes into the tree that it builds, and would also pack what an
    earlier build has left there."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", source / "src", ignore=ignored)
    build = "import setuptools.build_meta, sys; print(setuptools.build_meta.build_wheel(sys.argv[1]))"
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build, str(out)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        path = f"scaledit-{__version__}.dist-info/METADATA"
        return email.message_from_bytes(archive.read(path))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path):
    assert wheel.name == f"scaledit-{__version__}-py3-none-any.whl"
    package = ROOT / "src" / "scaledit"
    files = {
        f"scaledit/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    about = f"scaledit-{__version__}.dist-info/"
    with zipfile.ZipFile(wheel) as archive:
        packed = {info.filename: info.file_size for info in archive.infolist()}
    assert {name for name in packed if not name.startswith(about)} == files
    assert {f"{about}licenses/LICENSE", f"{about}METADATA", f"{about}entry_points.txt"} <= packed.keys()
    data = {"py.typed", "recipes/digits.toml", "studies/digits.toml", "scaling/paper.json"}
    data |= {"evaluation/digits.safetensors", "evaluation/photos.safetensors", "report/templates/run.html"}
    assert {f"scaledit/{name}" for name in data} <= packed.keys()
    large = {name: size for name, size in packed.items() if size > LARGEST}
    assert not large


def test_metadata(metadata: Message):
    assert metadata["Name"] == "scaledit"
    assert metadata["Version"] == PROJECT["version"] == __version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"] == "scaledit contributors"
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL") or ())
    assert urls.keys() == {"Homepage", "Documentation", "Repository", "Issues", "Changelog"}
    assert urls["Repository"] == REPOSITORY
    assert all(url.startswith((REPOSITORY, "https://scaledit.github.io/scaledit/")) for url in urls.values())
    classifiers = metadata.get_all("Classifier") or []
    for version in ("3.11", "3.12", "3.13"):
        assert f"Programming Language :: Python :: {version}" in classifiers
    assert "Typing :: Typed" in classifiers
    systems = [line for line in classifiers if line.startswith("Operating System")]
    assert systems == ["Operating System :: MacOS", "Operating System :: POSIX :: Linux"]
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_the_extra_all_has_every_extra_that_adds_something_to_the_program(metadata: Message):
    extras = PROJECT["optional-dependencies"]
    assert set(metadata.get_all("Provides-Extra") or ()) == extras.keys()
    [everything] = extras["all"]
    assert set(everything[len("scaledit[") : -1].split(",")) == extras.keys() - {"all", "dev", "docs"}


OUTSIDE = """
import json, sys
target, *others = json.loads(sys.argv[1])
sys.path[:0] = [target]
sys.path += others
import scaledit
from scaledit.cli import main
for words in json.loads(sys.argv[2]):
    assert main(words) == 0, words
print(scaledit.load("run", device="cpu")([3, 1], seed=0).shape)
homes = [module.__file__ for name, module in sys.modules.items() if name.startswith("scaledit.")]
assert len(homes) > 100
print(json.dumps([home for home in homes if not home.startswith(target)]))
"""


def test_the_wheel_works_outside_of_the_repository(wheel: Path, tmp_path: Path):
    """Installed alone into a folder and run elsewhere, without site: an editable installation of the
    repository in this environment is invisible, its other packages are visible."""
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    subprocess.run([*pip, str(target), str(wheel)], check=True)
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    run = ["--out", "run", *TINY, "train.steps=2", "evaluate.num=20", "evaluate.seeds=1"]
    commands = [
        ["--version"],
        ["recipes"],
        ["train", "digits", *run],
        ["sample", "run", "--classes", "3", "--num", "1", "--out", "digit.png"],
        ["paper", "--table", "4"],
    ]
    arguments = [json.dumps([str(target), *others]), json.dumps(commands)]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", OUTSIDE, *arguments], cwd=elsewhere, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"scaledit {__version__}"
    assert lines[-2:] == ["(2, 8, 8, 3)", "[]"]
    assert (elsewhere / "run" / "report.html").is_file()
    assert (elsewhere / "digit.png").is_file()
    script = (target / "bin" / "scaledit").read_text()
    assert "from scaledit.cli import main" in script


def test_the_citation_names_this_version_and_the_paper():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", text, re.MULTILINE)[1] == __version__  # type: ignore[index]
    assert f'repository-code: "{REPOSITORY}"' in text
    assert "license: Apache-2.0" in text
    assert "arXiv:2212.09748" in text


def instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile as (keyword, arguments), with continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in joined.splitlines()]


def ignored(name: str) -> bool:
    """Whether .dockerignore, all but the names that it lists, hides a path of the repository."""
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in rules
    return f"!{name.split('/')[0]}" not in [rule.rstrip("/") for rule in rules]


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_dockerfiles(name: str):
    """They are not built here: what they copy exists, what they install is declared, and the user is not
    root."""
    steps = instructions(ROOT / "docker" / f"{name}.Dockerfile")
    keywords = [keyword for keyword, _ in steps]
    known = {"FROM", "ENV", "COPY", "RUN", "VOLUME", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert keywords[0] == "FROM" and set(keywords) <= known
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", steps[0][1])
    assert keywords.index("USER") > max(i for i, keyword in enumerate(keywords) if keyword == "RUN")
    assert ("ENTRYPOINT", '["scaledit"]') in steps
    for keyword, arguments in steps:
        if keyword == "COPY":
            for source in arguments.split()[:-1]:
                assert (ROOT / source).exists() and not ignored(source), source
    installs = [arguments for keyword, arguments in steps if "pip install" in arguments]
    extras = re.findall(r"\[([\w,]+)\]", installs[-1])[0].split(",")
    assert set(extras) <= PROJECT["optional-dependencies"].keys()
    if name == "cpu":
        makefile = (ROOT / "Makefile").read_text()
        index = re.search(r"--extra-index-url (\S+)", installs[0])
        assert index and f"CPU_INDEX := {index[1]}\n" in makefile
        assert all("--constraint /opt/scaledit/constraints/cpu.txt" in line for line in installs)
    else:
        version = re.search(
            r"^torch==([\d.]+)\+cpu", (ROOT / "constraints/cpu.txt").read_text(), re.MULTILINE
        )
        assert version and all(f'"torch=={version[1]}"' in line for line in installs)
