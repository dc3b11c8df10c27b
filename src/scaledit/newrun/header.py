"""The comment at the top of a recipe: what was asked for, and how it is used.

plan --texts--> (recipe, autoencoder's recipe or None)          path --request_of--> the command that wrote it
"""

from __future__ import annotations

from pathlib import Path

from scaledit.autoencoders.config import AutoencoderRun
from scaledit.config import RunConfig, read_toml
from scaledit.newrun import recipe, rules
from scaledit.newrun.plan import Plan

WRITTEN_BY = "written by: "


def request_of(path: Path) -> str | None:
    """The command that wrote the recipe at `path`; None if `scaledit new` did not. Raises UsageError if it is
    not TOML."""
    _, text = read_toml(path)
    lines = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    return next((line.removeprefix(WRITTEN_BY) for line in lines if line.startswith(WRITTEN_BY)), None)


def texts(plan: Plan, request: str, commands: tuple[str, ...]) -> tuple[str, str | None]:
    """The recipe, and that of its autoencoder if it has one. commands: of all stages, in order."""
    facts = plan.facts
    numbered = [f"  {command}" for command in commands]
    top = [
        f"{facts.name}: {facts.in_words()}.",
        "",
        f"{WRITTEN_BY}{request}",
        f"takes: about {plan.minutes:.0f} min on the machine that wrote it",
        "",
        f"With --run, that command runs, or resumes, {'these' if len(commands) > 1 else 'this one'}:",
        *numbered,
        "",
        "Change any value: the reason beside it says what it follows from.",
        *(f"Note: {note}." for note in plan.notes),
    ]
    model = recipe.text(RunConfig, plan.choices, top)
    if not plan.autoencoder:
        return model, None
    base = rules.autoencoder_recipe(plan.draft.factor)
    above = [
        f"The autoencoder of {plan.places.recipe}, whose comment says how to use it.",
        f"Whatever is not here is as in the recipe {base} (scaledit recipes {base}).",
    ]
    return model, recipe.text(AutoencoderRun, plan.autoencoder, above, [f'extends = "{base}"'])
