"""Pages that are made from the code when the site is built: configuration, commands, Python API.

fields of the config's sections and parts  ->  reference/configuration.md
arguments of the commands                  ->  reference/commands.md
modules                                    ->  reference/api/*.md
CHANGELOG.md, CONTRIBUTING.md              ->  changelog.md, contributing.md
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from scaledit import cli
from scaledit.autoencoders.config import AutoencoderRun
from scaledit.commands.index import CommandHelp
from scaledit.config import Config, RunConfig
from scaledit.config.keys import Key, keys
from scaledit.config.tables import section_types
from scaledit.part import Part, describe, inner_kinds

ROOT = Path(__file__).resolve().parent.parent.parent

API: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "index": ("Load and sample", ("scaledit.pipeline", "scaledit.errors", "scaledit.images")),
    "models": (
        "Models",
        (
            "scaledit.models.config",
            "scaledit.models.dit",
            "scaledit.models.description",
            "scaledit.models.layers",
            "scaledit.models.blocks",
            "scaledit.models.positions",
            "scaledit.models.conditioners",
            "scaledit.models.norms",
            "scaledit.models.mlps",
            "scaledit.models.patch_embeds",
            "scaledit.models.time_embeddings",
            "scaledit.models.flops",
            "scaledit.conditions",
        ),
    ),
    "diffusion": (
        "Diffusion",
        (
            "scaledit.diffusion.schedule",
            "scaledit.diffusion.parameterization",
            "scaledit.diffusion.denoiser",
            "scaledit.diffusion.guidance.base",
            "scaledit.diffusion.guidance.classifier_free",
            "scaledit.diffusion.guidance.cfg_zero_star",
            "scaledit.diffusion.guidance.autoguidance",
            "scaledit.diffusion.guidance.internal",
            "scaledit.diffusion.guidance.interval",
            "scaledit.diffusion.guidance.scheduled",
            "scaledit.diffusion.guidance.rescale",
            "scaledit.diffusion.objectives.base",
            "scaledit.diffusion.objectives.simple",
            "scaledit.diffusion.objectives.hybrid",
            "scaledit.diffusion.objectives.velocity",
            "scaledit.diffusion.objectives.min_snr",
            "scaledit.diffusion.terms.base",
            "scaledit.diffusion.terms.total",
            "scaledit.diffusion.terms.early",
            "scaledit.diffusion.terms.contrastive",
            "scaledit.diffusion.terms.alignment",
            "scaledit.diffusion.teachers",
            "scaledit.diffusion.timesteps.base",
            "scaledit.diffusion.timesteps.uniform",
            "scaledit.diffusion.timesteps.logit_normal",
            "scaledit.diffusion.timesteps.loss_second_moment",
            "scaledit.diffusion.timesteps.shifted",
            "scaledit.diffusion.shift",
            "scaledit.diffusion.noise",
        ),
    ),
    "samplers": (
        "Samplers",
        (
            "scaledit.diffusion.samplers.loop",
            "scaledit.diffusion.samplers.base",
            "scaledit.diffusion.samplers.ddpm",
            "scaledit.diffusion.samplers.ddim",
            "scaledit.diffusion.samplers.euler",
            "scaledit.diffusion.samplers.heun",
            "scaledit.diffusion.samplers.adaptive",
            "scaledit.diffusion.samplers.dpm",
            "scaledit.diffusion.samplers.unipc",
            "scaledit.diffusion.times",
        ),
    ),
    "config": (
        "Recipes and parts",
        (
            "scaledit.config.recipes",
            "scaledit.config.runs",
            "scaledit.part",
            "scaledit.values",
            "scaledit.optimizers.base",
            "scaledit.optimizers.adamw",
            "scaledit.optimizers.muon",
        ),
    ),
    "training": (
        "Training",
        (
            "scaledit.training.dit",
            "scaledit.training.autoencoder",
            "scaledit.training.loop",
            "scaledit.training.events",
            "scaledit.training.ema",
            "scaledit.training.trackers.base",
            "scaledit.checkpoint",
        ),
    ),
    "data": (
        "Data and autoencoders",
        (
            "scaledit.data.datasets",
            "scaledit.data.datasets.standard",
            "scaledit.data.latents",
            "scaledit.data.order",
            "scaledit.autoencoders.kl",
            "scaledit.autoencoders.decoder",
            "scaledit.autoencoders.cache",
            "scaledit.autoencoders.config",
        ),
    ),
    "evaluation": (
        "Evaluation",
        (
            "scaledit.evaluation.judge",
            "scaledit.evaluation.samples",
            "scaledit.evaluation.metric",
            "scaledit.evaluation.metrics.frechet",
            "scaledit.evaluation.metrics.neighbors",
            "scaledit.evaluation.metrics.kernel",
            "scaledit.evaluation.metrics.classes",
            "scaledit.evaluation.metrics.copies",
            "scaledit.evaluation.reference",
            "scaledit.evaluation.result",
            "scaledit.sampling.generate",
        ),
    ),
    "scaling": (
        "Compute and studies",
        (
            "scaledit.scaling.plan",
            "scaledit.scaling.budget",
            "scaledit.scaling.devices",
            "scaledit.scaling.paper",
            "scaledit.scaling.fits",
            "scaledit.scaling.study",
        ),
    ),
    "interop": (
        "Other programs' checkpoints",
        ("scaledit.interop.convert", "scaledit.interop.model", "scaledit.interop.lazy_tensors"),
    ),
}
"""{page: (title, modules)} of the Python reference."""


def pages() -> Iterator[tuple[str, str]]:
    """(path under docs, Markdown) of each page."""
    yield "reference/configuration.md", configuration()
    yield "reference/commands.md", commands()
    for name, (title, modules) in API.items():
        yield f"reference/api/{name}.md", api(title, modules)
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        yield (
            name.lower(),
            re.sub(r"\]\((?!https?:|#)(docs/)?", lambda link: "](" if link[1] else "](../", text),
        )


def configuration() -> str:
    """All keys of all recipes, and all parts with their fields."""
    return "\n\n".join(
        [
            "# Configuration",
            "A recipe is a TOML file with the sections below. Every key can also be set on the command line, "
            "after the recipe: `scaledit train digits train.steps=2000`. `scaledit recipes NAME` prints the "
            "keys of a recipe with its values. This page is made from the code.",
            "Besides its sections, a recipe may set `name` (its file's name by default), `extends` (the name "
            'or path of a recipe whose keys it changes) and `trains` (`"model"`, or `"autoencoder"`).',
            "## Recipes of models",
            *_sections(RunConfig),
            "## Recipes of autoencoders",
            '`scaledit autoencoder train` reads recipes with `trains = "autoencoder"`. Sections that are not '
            "listed here are those of models.",
            *_sections(AutoencoderRun, like=RunConfig),
            "## Parts",
            "A key whose type is a kind of part accepts the name of a part (`sample.sampler=ddim`), a table "
            'with its fields (`sample.sampler={name="ddim", eta=0.5}`), or `MODULE:CLASS` for a part of your '
            "own. A single field is set as `sample.sampler.eta=0.5`.",
            *_parts(keys(RunConfig)),
        ]
    )


def _sections(kind: type[Config], like: type[Config] | None = None) -> Iterator[str]:
    known = {} if like is None else section_types(like)
    prefix = "" if like is None else "autoencoder-"
    for section, cls in section_types(kind).items():
        if known.get(section) is cls:
            continue
        yield f"### [{section}] {{ #{prefix}{section} }}"
        yield " ".join((cls.__doc__ or "").split("\n\n")[0].split())
        yield _table(
            ("key", "meaning", "type", "default", "bounds"),
            (
                [_code(key.name), key.doc, _type(key), _code(key.default_text), key.bounds]
                for key in keys(kind)
                if key.section == section
            ),
        )


def _type(key: Key) -> str:
    return key.type if key.kind is None else f"[{key.type}](#{_anchor(key.kind)})"


def _anchor(kind: type[Part]) -> str:
    return f"part-{kind.KIND.replace(' ', '-')}"


def _parts(all_keys: Iterable[Key]) -> Iterator[str]:
    """A section for each kind of part, those of inner parts included."""
    seen: dict[type[Part], list[str]] = {}
    waiting = [(key.kind, key.key) for key in all_keys if key.kind is not None]
    while waiting:
        kind, key = waiting.pop(0)
        if kind not in seen:
            waiting += [(inner, f"{key}.{name}") for name, inner in inner_kinds(kind).items()]
        seen.setdefault(kind, []).append(key)
    for kind, where in seen.items():
        yield f"### {kind.KIND} {{ #{_anchor(kind)} }}"
        yield f"Keys: {', '.join(map(_code, where))}."
        for part in describe(kind):
            yield f"**{_code(part.name)}**: {_escaped(part.summary)}"
            if part.fields:
                yield _table(
                    ("field", "meaning", "default", "bounds"),
                    (
                        [_code(field.name), field.doc, _code(field.default), field.bounds]
                        for field in part.fields
                    ),
                )


def commands() -> str:
    """The help of every command, in the groups of `scaledit --help`."""
    text = [
        "# Commands",
        "This page is made from the commands' own help, which `scaledit COMMAND --help` prints. The keys of "
        "`section.key=value` are those of the [configuration](configuration.md).",
    ]
    for group, names in cli.GROUPS.items():
        text.append(f"## {group}")
        for name in names:
            text += _command(cli.describe(name))
    return "\n\n".join(text)


def _command(command: CommandHelp) -> Iterator[str]:
    yield f"### scaledit {command.name} {{ #{command.name} }}"
    yield f"{command.summary[:1].upper()}{command.summary[1:]}."
    yield _escaped(command.description)
    yield f"```text\n{command.usage.strip()}\n```"
    examples = "\n\n".join("\n".join(example.lines()) for example in command.examples)
    yield f"```sh\n{examples}\n```"
    rows = [
        [_code(" ".join([", ".join(one.flags), one.metavar]).strip()), _escaped(one.help)]
        for one in (*command.arguments, *command.options)
        if "--help" not in one.flags
    ]
    yield _table(("argument", "meaning"), rows)


def api(title: str, modules: Iterable[str]) -> str:
    """A page of the Python reference: each module with its public members."""
    return "\n\n".join(
        [
            f"# {title}",
            *(
                f"## {module}\n\n::: {module}\n    options:\n"
                "      show_root_heading: false\n      show_root_toc_entry: false"
                for module in modules
            ),
        ]
    )


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _escaped(text: str) -> str:
    """Text in which Markdown would see markup."""
    return re.sub(r"([*_<\[\]$])", r"\\\1", text)


def write() -> None:
    """Hands the pages to mkdocs."""
    import mkdocs_gen_files

    for path, text in pages():
        with mkdocs_gen_files.open(path, "w") as file:
            file.write(text)


if __name__ == "<run_path>":  # how mkdocs-gen-files runs a script
    write()
