"""The documentation: its code is valid and runs, its links lead somewhere, no key is missing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch

import documents
import pictures
import words
from demos import trained
from documents import PAGES, ROOT, blocks, scaledit
from layouts import official_state, random_dit
from scaledit import DiTConfig, checkpoint, cli, config
from scaledit.autoencoders.config import AutoencoderConfig, AutoencoderRun
from scaledit.config import RunConfig
from scaledit.config.keys import keys
from scaledit.training.autoencoder_state import build

SHORT = {
    "train": ("train.steps=6", "evaluate.num=20", "evaluate.seeds=1", "sample.per_class=2"),
    "autoencoder": ("train.steps=3", "evaluate.num=2"),
    "generate": ("--num", "40"),
    "evaluate": ("--num", "40", "--seeds", "1"),
    "sweep": ("--num", "12", "--seeds", "1"),
}
"""Arguments that shorten the commands of the documentation."""
RECIPES_OF_RUNS = {"train": "digits", "autoencoder": "photos-ae"}
"""Recipes with the keys of the runs that a command resumes."""
REPOSITORY = (
    r"https://(?:github|raw\.githubusercontent)\.com/scaledit/scaledit/(?:(?:blob|tree|raw)/)?main/([^#]+)"
)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_has_a_language_and_can_be_checked(page: Path):
    text = page.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(list(blocks(page))), "a fence is not closed, or indented otherwise"
    for block in blocks(page):
        assert block.language in documents.LANGUAGES, f"{block}: unknown language {block.language!r}"
        if block.language == "sh" and not block.needs:
            for command in block.commands:
                known = command.startswith("scaledit ") or command.split()[0] in documents.NOT_RUN
                assert known, f"{block}: {command!r} is neither run nor marked '# Needs ...'"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_and_recipe_is_valid(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also of those that need ImageNet or a cluster: options, recipes, keys and values are checked."""
    monkeypatch.chdir(tmp_path)
    copy_examples(tmp_path)
    with own_modules(tmp_path):
        for block in blocks(page):
            if block.file:
                (tmp_path / block.file).write_text(block.text)
            if block.language == "python":
                compile(block.text, str(block), "exec")
            if block.language == "bash":
                subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
            for command in block.commands if block.language == "sh" else ():
                if (arguments := scaledit(command)) is not None:
                    check(arguments, str(block))


def is_run(word: str) -> bool:
    """Whether an argument of `train` is the folder of a run."""
    return word.startswith("runs/") and not word.endswith(".toml")


def check(arguments: list[str], where: str) -> None:
    """Parses a command line and builds the config of its recipe."""
    if not arguments or arguments[0].startswith("-"):
        return
    try:
        parsed = cli.parser(arguments[0]).parse(arguments[1:])
        overrides = getattr(parsed, "overrides", ())
        if getattr(parsed, "recipe", None) and overrides:
            recipe = RECIPES_OF_RUNS[arguments[0]] if is_run(parsed.recipe) else parsed.recipe
            kind = {"model": RunConfig, "autoencoder": AutoencoderRun}[config.trained_by(recipe)]
            config.load(recipe, overrides, kind)
    except SystemExit:  # --help
        pass
    except Exception as error:
        raise AssertionError(f"{where}: {' '.join(arguments)}: {error}") from error


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages expect in their working directory: the demo, pictures, and stand-ins of what one
    downloads: the smallest of the paper's models for its largest, and a small autoencoder."""
    where = tmp_path_factory.mktemp("docs") / "start"
    trained("digits", where / "runs" / "demo", "train.steps=40", "evaluate.num=40", "sample.every=20")
    pictures.tree(where / "pictures")
    torch.save(official_state(random_dit(DiTConfig.named("DiT-S/8"))), where / "DiT-XL-2-256x256.pt")
    autoencoder = build(AutoencoderConfig(widths=(8, 8, 8, 8)), 256, seed=0)
    autoencoder.save_pretrained(where / "stabilityai" / "sd-vae-ft-mse")
    return where


def copy_examples(where: Path) -> None:
    for example in (ROOT / "examples").glob("*.py"):
        shutil.copy(example, where)


@contextmanager
def own_modules(where: Path) -> Iterator[None]:
    """Forgets the modules of a page afterwards: the next page has other versions of them."""
    try:
        yield
    finally:
        for key, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(where)):
                del sys.modules[key]


def runnable(page: Path) -> bool:
    return any(block.language in ("sh", "python") and not block.needs for block in blocks(page))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=name)
def test_code_of_the_page_runs(page: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    where = tmp_path / "work"
    shutil.copytree(folder, where)
    copy_examples(where)
    monkeypatch.chdir(where)
    monkeypatch.syspath_prepend(str(where))
    page_module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page_module)  # dataclasses look up the module of a class
    with own_modules(where):
        for block in blocks(page):
            if block.file:
                (where / block.file).write_text(block.text)
            if block.language == "python" and not block.needs:
                exec(compile(block.text, str(block), "exec"), vars(page_module))
            if block.language == "sh" and not block.needs:
                for command in block.commands:
                    run(command, str(block))


def run(command: str, where: str) -> None:
    arguments = scaledit(command) if command.startswith("scaledit ") else None
    if arguments is None:
        return
    of_files = arguments[0] == "evaluate" and not (Path(arguments[1]) / "config.json").exists()
    recipe = {"train": 1, "autoencoder": 2}.get(arguments[0])
    if recipe and is_run(arguments[recipe]):  # with the settings that it has
        if "--until" in arguments:
            newest = checkpoint.find(Path(arguments[recipe]) / "checkpoints")[-1]
            steps = int(newest.name.removeprefix("step-")) + 2
            arguments[arguments.index("--until") + 1] = str(steps)
    else:
        arguments += () if of_files else SHORT.get(arguments[0], ())
    try:
        code = cli.main(arguments)
    except SystemExit as stop:  # --help
        code = stop.code
    assert code == 0, f"{where}: {command} ended with {code}"


def test_links_of_the_readme_lead_to_files_of_the_repository():
    """They are absolute, so that they also work on a package index."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)
    assert links
    for link in (first or second for first, second in links):
        assert link.startswith("https://"), f"{link} is relative"
        own = re.match(REPOSITORY, link)
        assert not own or (ROOT / own[1]).exists(), f"{link}: there is no {own and own[1]}"


def test_the_configuration_page_has_every_key():
    """Every key of a resolved config and every field of a dataclass, each with a meaning."""
    sys.path.insert(0, str(ROOT / "docs" / "site"))
    try:
        import pages
    finally:
        sys.path.pop(0)
    text = pages.configuration()
    for kind, recipe in ((RunConfig, "digits"), (AutoencoderRun, "photos-ae")):
        listed = {key.key: key for key in keys(kind)}
        resolved = config.load(recipe, kind=kind).to_json()
        for section, values in resolved.items():
            for key in values if isinstance(values, dict) else ():
                assert f"{section}.{key}" in listed
        for key in listed.values():
            assert len(key.doc) > 8, f"{key.key} has no meaning"
            row = rf"^\| `{key.name}` \| .*{re.escape(key.doc[:30])}"
            assert re.search(row, text, re.MULTILINE), f"{key.key} is not on the page"


def test_the_words_that_must_not_come_back_are_found_where_they_are(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("Put the images into\na folder a class.\n")
    [hit] = words.hits([page], [words.Word(r"\ba folder a class\b", "one folder per class")])
    assert (hit.path, hit.line, hit.text, hit.instead) == (
        page,
        2,
        "a folder a class",
        "one folder per class",
    )
