"""Pages of untrusted folders: text stays text, and no file from outside the folder is embedded."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from PIL import Image

from made_tables import study as made_study
from scaledit import config
from scaledit.cli import main
from scaledit.errors import UsageError
from scaledit.files.manifest import sealed
from scaledit.files.reading import LARGEST_PICTURE, picture_in
from scaledit.report import page, run, study
from scaledit.report.reproduce import nearest
from scaledit.scaling import comparable
from scaledit.scaling import table as tables
from tiny import TINY

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>"
SECRET = "root:x:0:0"
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "pre", "code", "sup", "div"),
    *("table", "thead", "tbody", "tr", "th", "td", "ul", "li", "dl", "dt", "dd", "a"),
    *("details", "summary", "img", "figure", "figcaption"),
}


class Read(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.sources: list[str] = []
        self.headings: list[int] = []
        self.alts: list[str | None] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        self.headings += [int(tag[1])] if re.fullmatch(r"h\d", tag) else []
        self.alts += [dict(attrs).get("alt")] if tag == "img" else []

    def handle_data(self, data: str) -> None:
        self.text += data


def harmless(text: str) -> Read:
    """Parses a page, and asserts that it has only our own tags, no handlers, and only our pictures as
    sources, headings in order, and images with descriptions."""
    read = Read(text)
    assert all(below - above <= 1 for above, below in itertools.pairwise([0, *read.headings]))
    assert read.headings.count(1) == 1 and all(read.alts)
    assert not re.search(r"https?:|@import|url\(", re.sub(r"<(pre|dd).*?</\1>", "", text, flags=re.DOTALL))
    assert read.tags <= TAGS and not [name for name in read.attributes if name.startswith("on")]
    assert all(
        re.match(r"data:image/(png|svg\+xml);base64,|figures/[\w-]+\.png$", source) for source in read.sources
    )
    return read


@settings(max_examples=100, deadline=None)
@given(st.text(), st.text(st.sampled_from("<>&'\"{}/\x1b\u202e script")))
def test_text_comes_out_of_a_page_as_it_went_in(one: str, other: str):
    template = (
        "{% extends 'page.html' %}{% from 'pieces.html' import facts, left_out, sheets, table %}"
        "{% block body %}{{ facts({other: one}) }}{{ table([one], [[other]], one) }}"
        "{{ sheets({one: sheet}, [other]) }}{{ left_out([one, other]) }}"
        "{{ one ~ '<b>' ~ other }}{% endblock %}"
    )
    sheet = page.Sheet(b"x", 9, 9, f"alt {one}", True)
    shown = page.templates().from_string(template).render(title=one, one=one, other=other, sheet=sheet)
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
    assert read.text.count(EVIL) >= 14  # beside the grids ten classes, the device, the protocol, the warning
    assert SECRET not in text and "cm9vd" not in text  # which is base64 of it
    for message in ("link.png is outside", "text.png is not a PNG"):
        assert message in read.text
    assert "huge.png has 34 MB" in read.text
    assert "7 lines of log.jsonl that cannot be read" in read.text  # the picture outside is one
    assert "step 4" in read.text  # the one picture that is a run's


def test_the_command_of_a_report_makes_the_same_run(finished: Path, tmp_path: Path):
    """Also of a recipe that scaledit does not have, and of values that a shell would take apart."""
    for recipe in ("digits", str(next(finished.parent.glob("*.toml")))):
        first = tmp_path / f"a 'run' of {len(recipe)}"
        quick = ["train.steps=1", "evaluate.num=10", "evaluate.seeds=1", 'data.path="a b; $HOME"']
        assert main(["train", recipe, "--out", str(first), *TINY, *quick]) == 0
        shown = re.search(
            "<h2>Reproduce</h2>.*?<pre[^>]*>(.*?)</pre>", (first / "report.html").read_text(), re.DOTALL
        )
        assert shown is not None
        train, *uses = unescape(shown[1]).replace("\\\n", " ").splitlines()
        words = shlex.split(train)
        assert words[:2] == ["scaledit", "train"]
        again = tmp_path / f"again {len(recipe)}"
        assert main([str(again) if word == str(first) else word for word in words[1:]]) == 0
        one, other = (json.loads((folder / "config.json").read_text()) for folder in (first, again))
        assert one.pop("name") == Path(recipe).stem and other.pop("name") == "digits"
        assert one == other
        assert [shlex.split(use)[:3] for use in uses] == [
            ["scaledit", "sample", str(first)],
            ["scaledit", "evaluate", str(first)],
        ]


def test_every_recipe_can_be_written_as_changes_to_another():
    for name in config.recipe_names():
        wanted = config.load(name)
        recipe, overrides = nearest(replace(wanted, name="mine"))
        assert config.load(recipe, overrides).to_json() == {**wanted.to_json(), "name": recipe}


def test_charts_follow_the_color_scheme_and_hold_their_labels_as_text():
    figure, axes = page.axes(3, 2, "step", f"{EVIL} $x$ \x1b")
    axes.plot([1, 2], [1, 2], color=page.DARK)
    svg = page.chart(figure, "a chart").svg.decode()
    root = ElementTree.fromstring(svg)
    texts = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert f"{EVIL} $x$ \\x1b" in texts
    assert "prefers-color-scheme: dark" in svg
    assert svg.count(page.DARK) == 1 and "var(--c2)" in svg  # once, where the variable is defined


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    levels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    return sum(weight * level for weight, level in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_has_the_contrast_of_wcag_aa_in_both_modes():
    style = (Path(page.__file__).parent / "templates/style.html").read_text()
    modes = [dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in style.split("@media")[:2]]
    assert len(modes) == 2 and modes[0].keys() == modes[1].keys()
    for colors in modes:
        for text in ("ink", "quiet", "link", "good", "bad", "open"):
            assert all(contrast(colors[text], colors[back]) >= 4.5 for back in ("page", "card")), text
    light, dark = modes
    for before, after in page.IN_THE_DARK.items():
        if before in (page.INK, page.REAL, page.DARK):  # text, and lines that carry meaning
            assert contrast(before, light["page"]) >= 3 and contrast(after, dark["page"]) >= 3


def test_class_names_are_limited():
    assert page.row_names([3, "x" * 100]) == ["3", "x" * 60 + "…"]


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
