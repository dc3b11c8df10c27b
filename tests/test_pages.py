"""Pages of untrusted folders: text stays text, and no file from outside the folder is embedded."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from PIL import Image

from made_tables import study as made_study
from scaledit.cli import main
from scaledit.errors import UsageError
from scaledit.files.manifest import sealed
from scaledit.files.reading import LARGEST_PICTURE, picture_in
from scaledit.report import page, run, study
from scaledit.scaling import comparable
from scaledit.scaling import table as tables
from tiny import TINY

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>"
SECRET = "root:x:0:0"
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "pre", "code", "sup", "div"),
    *("table", "tr", "th", "td", "ul", "li", "details", "summary", "img", "figure", "figcaption"),
}


class Read(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources += [value or "" for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.text += data


def harmless(text: str) -> Read:
    """Parses a page, and asserts that it has only our own tags, no handlers, and only our pictures as
    sources."""
    read = Read(text)
    assert read.tags <= TAGS and not [name for name in read.attributes if name.startswith("on")]
    assert all(re.match(r"data:image/png;base64,|figures/[\w-]+\.png$", source) for source in read.sources)
    return read


@settings(max_examples=100, deadline=None)
@given(st.text(), st.text(st.sampled_from("<>&'\"{}/\x1b\u202e script")))
def test_text_comes_out_of_a_page_as_it_went_in(one: str, other: str):
    template = (
        "{% extends 'page.html' %}{% from 'pieces.html' import facts, left_out, row, table %}{% block body %}"
        "{{ facts({other: one}) }}{{ table([one], [[other]]) }}{{ row({one: png}, 9) }}"
        "{{ left_out([one, other]) }}{{ one ~ '<b>' ~ other }}{% endblock %}"
    )
    shown = page.templates().from_string(template).render(title=one, one=one, other=other, png=b"x")
    read = harmless(shown)
    plain = [text for text in (one, other) if all(c.isprintable() for c in text)]
    assert all(read.text.count(text) >= 2 for text in plain)


def test_only_templates_make_tags():
    """Tags in concatenated text are shown, not rendered."""

    def rendered(template: str, **values: object) -> str:
        return page.templates().from_string(template).render(values)

    assert rendered("<b>{{ x }}</b>{{ x + x }}", x="<") == "<b>&lt;</b>&lt;&lt;"
    assert rendered("<p title='{{ x }}'>", x="' onclick='\"") == "<p title='&#39; onclick=&#39;&#34;'>"
    assert rendered("{{ x }} {{ y }}", x="\u202e\x1b[2J", y=b"<") == r"\u202e\x1b[2J b&#39;&lt;&#39;"
    long = rendered("{{ x }}", x="x" * 10**6)
    assert len(long) < 10**6 and "900000 more characters" in long
    with pytest.raises(UndefinedError):
        rendered("{{ x }}")


def test_no_template_marks_what_it_is_given_as_safe():
    """Templates never; the code uses Markup only for its own tags and for pictures."""
    folder = Path(page.__file__).parent
    for path in (folder / "templates").iterdir():
        assert not re.search(r"\bsafe\b|autoescape|\|\s*attr\b", path.read_text())
    markup = re.findall(r"Markup\((?!\))[^)]*", "".join(path.read_text() for path in folder.glob("*.py")))
    assert sorted(markup) == [
        'Markup("<code>{}</code>"',
        'Markup("{} ~ Gflops<sup>-b</sup>"',
        "Markup(base64.b64encode(png",
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a recipe with a hostile name."""
    folder = tmp_path_factory.mktemp("pages")
    recipe = folder / "[b]<img src=x onerror=alert(1)>.toml"
    recipe.write_text('extends = "digits"\n')
    quick = ["train.steps=2", "sample.every=1", "evaluate.num=20", "evaluate.seeds=1"]
    assert main(["train", str(recipe), "--out", str(folder / "run"), *TINY, *quick]) == 0
    return folder / "run"


def test_a_hostile_run_folder_makes_a_harmless_page(finished: Path):
    folder = finished
    assert "[b]<img src=x onerror=alert(1)>" in harmless((folder / "report.html").read_text()).text

    [checkpoint] = (folder / "checkpoints").iterdir()
    manifest = json.loads((checkpoint / "manifest.json").read_bytes())
    del manifest["sha256"]
    manifest["state"]["class_names"] = [f"{EVIL}{i}" for i in range(10)]
    (checkpoint / "manifest.json").write_bytes(sealed(manifest))

    (folder.parent / "secret").write_text(SECRET)
    Image.new("RGB", (4, 4), "red").save(folder.parent / "outside.png")
    (folder / "samples/link.png").symlink_to(folder.parent / "outside.png")
    (folder / "samples/text.png").write_text(SECRET)
    (folder / "samples/huge.png").touch()
    with (folder / "samples/huge.png").open("r+b") as file:
        file.truncate(LARGEST_PICTURE + 1)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    [fine] = [line["path"] for line in lines if line["event"] == "sampled" and line["step"] == 2]
    lines = [line for line in lines if line["event"] != "sampled"]
    for line in lines:
        line |= {"device": EVIL} if line["event"] == "started" else {}
    paths = ["../secret", "samples/link.png", "samples/text.png", "samples/huge.png", fine]
    lines += [{"event": "sampled", "step": i, "path": path} for i, path in enumerate(paths)]
    result = {"fd_digits": 9.0, "name": EVIL, "protocol": {"cfg_scale": 3.0, EVIL: EVIL}, "warnings": [EVIL]}
    lines += [
        {"event": "evaluated", "step": 2, **result},
        {"event": "evaluated", "step": 2, "fd_digits": "<b>", "protocol": EVIL},
        {"event": "stepped", "step": EVIL, "loss": 1.0, "seconds": 1},
        {"event": "stepped", "step": 2, "loss": EVIL, "seconds": 1},
        {"event": "stepped", "step": 2, "loss": "nan", "seconds": 1, "mfu": EVIL},
        {"event": "sampled", "step": 9, "path": 7},
        {"event": "started", "step": 0, "device": [EVIL]},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = run.write(folder, "cpu").read_text()
    read = harmless(text)
    assert read.text.count(EVIL) >= 14  # ten classes, the device, the protocol, the warning
    assert SECRET not in text and "cm9vd" not in text  # which is base64 of it
    for message in ("link.png is outside", "text.png is not a PNG"):
        assert message in read.text
    assert "huge.png has 34 MB" in read.text
    assert "7 lines of log.jsonl that are no event of a run" in read.text  # the picture outside is one
    assert "step 4" in read.text  # the one picture that is a run's


def test_pictures_lie_in_their_folder(tmp_path: Path):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "in/a.png")
    (tmp_path / "out.png").write_bytes((tmp_path / "in/a.png").read_bytes())
    (tmp_path / "in/inner.png").symlink_to("a.png")
    (tmp_path / "in/loop.png").symlink_to("loop.png")
    assert picture_in(tmp_path / "in", "a.png") == picture_in(tmp_path / "in", "inner.png")
    for name in (
        "../out.png",
        str(tmp_path / "out.png"),
        "loop.png",
        "\0",
        "x" * 5000,
        "",
        ".",
        None,
        "b.png",
    ):
        with pytest.raises(ValueError):
            picture_in(tmp_path / "in", name)


def test_a_hostile_study_makes_a_harmless_page(tmp_path: Path):
    table = made_study()
    table = replace(table, rows=table.rows[:2], losses=())
    tables.write(table, tmp_path / "study")
    about = json.loads((tmp_path / "study/study.json").read_text())
    about |= {
        "name": comparable.PAPER,
        "title": EVIL,
        "distance": f"FD{EVIL}",
        "command": EVIL,
        "declared": EVIL,
    }
    about["made"] = dict.fromkeys(("processor", "hours", "torch", "scaledit", EVIL), EVIL)
    about["protocols"] = {EVIL: {EVIL: EVIL}}
    (tmp_path / "study/study.json").write_text(json.dumps(about))
    text = study.write(tables.read(tmp_path / "study"), tmp_path / "page").read_text()
    assert harmless(text).text.count(EVIL) >= 8

    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    pictures = tmp_path / "study/pictures"
    picture = pictures / f"{tables.file_name(table.rows[0].name)}.png"
    picture.unlink()
    picture.symlink_to(tmp_path / "outside.png")
    with pytest.raises(UsageError, match="outside of the folder"):
        tables.read(tmp_path / "study")


def test_the_committed_reports_come_out_byte_for_byte(tmp_path: Path):
    docs = Path(__file__).parent.parent / "docs" / "studies" / "photos"
    assert main(["study", str(docs), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_bytes() == (docs / "report.html").read_bytes()


def test_a_card_holds_names_as_text():
    """README.md of an exported model, which the Hub renders."""
    from scaledit.config import load
    from scaledit.interop import card
    from scaledit.interop.model import Model

    name = f"{EVIL} [x](javascript:1) `a` | b\n---\n# c {{sha256}}"
    model = Model(
        config=load("digits"),
        weights={},
        class_names=(name,) * 10,
        autoencoder_info=None,
        source={"name": name},
    )
    result = {"name": name, "fid": 2.0, name: 1.0, "protocol": {name: name}, "warnings": [name]}
    text = card.text(model, [result])
    assert text.count("{sha256}") == 1 + 2  # its own, and the protocol's, which is code
    outside = re.sub(r"`[^`\n]*`", "", text.replace("\\`", ""))
    assert "<" not in outside and "](" not in outside.replace("\\](", "")
    assert "\n---\n# c" not in text and text.count("\n---\n") == 1
    [row] = [line for line in text.splitlines() if line.startswith("| &lt;script")]
    assert row.replace("\\|", "").count("|") == 5
