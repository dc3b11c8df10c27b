"""scaledit completion: what a shell completes on TAB.

    shell  --"scaledit sample runs/d"-->  scaledit completion bash --line ...  -->  candidates, one per line

The shell asks scaledit itself, so that commands, options, recipes, parts and keys are those of this version,
and completes paths if there is no candidate. Imports no torch.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from scaledit import terminal
from scaledit.commands import common
from scaledit.commands.parsing import Example
from scaledit.errors import UsageError

if TYPE_CHECKING:
    from scaledit.commands.parsing import Parser

SUMMARY = "print a script that makes a shell complete scaledit's commands"
DESCRIPTION = """With it, TAB completes commands, options, recipes, samplers, section.key=value and paths.
The first example makes bash do so from now on."""
EXAMPLES = (
    Example("scaledit completion bash", "For bash, add the output to the file ~/.bashrc"),
    Example("scaledit completion zsh", "For zsh, add the output to the file ~/.zshrc, below compinit"),
    Example("scaledit completion fish", "For fish, write it to ~/.config/fish/completions/scaledit.fish"),
)
SCRIPTS: Mapping[str, str] = {
    "bash": """\
_scaledit() {
    local IFS=$'\\n'
    COMPREPLY=($("$1" completion bash --line "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=.] ]]; then compopt -o nospace; fi
}
complete -o default -F _scaledit scaledit""",
    "zsh": """\
_scaledit() {
    local -a found
    found=("${(@f)$("${words[1]}" completion zsh --line "${words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    if [[ -z "$found" ]]; then _files; return; fi
    compadd -Q -S '' -- ${(M)found:#*[=.]}
    compadd -Q -- ${found:#*[=.]}
}
compdef _scaledit scaledit""",
    "fish": """\
function __scaledit_complete
    set -l found (scaledit completion fish --line (commandline -cp) 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c scaledit -f -a '(__scaledit_complete)'""",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=list(SCRIPTS), help="the shell to print the script for")
    parser.add_argument(
        "--line", help=argparse.SUPPRESS
    )  # the line up to the cursor: print what completes it
    common.output(parser)


def run(args: argparse.Namespace) -> None:
    if args.line is not None:
        found = candidates(args.line)
        terminal.say(*(after_break(args.line, found) if args.shell == "bash" else found))
    elif args.json:
        terminal.say_json({"shell": args.shell, "script": SCRIPTS[args.shell]})
    else:
        terminal.say(*SCRIPTS[args.shell].splitlines())


def candidates(line: str) -> list[str]:
    """The words that the last word of `line` may become; none if it may be any path."""
    from scaledit.commands.index import COMMANDS, parser

    words = _words(line)[1:]
    if not words:
        return []
    *before, word = words
    if not before:
        return [name for name in (*COMMANDS, "--help", "--version") if name.startswith(word)]
    if before[0] not in COMMANDS:
        return []
    with suppress(UsageError):  # an unknown recipe, say
        found = _of_command(parser(before[0]), before[1:], word)
        return sorted({one for one in found if one.startswith(word)})
    return []


def after_break(line: str, found: Iterable[str]) -> list[str]:
    """As bash expects them: without what stands before the last = or : of the word, at which it splits."""
    word = _words(line)[-1]
    cut = max(word.rfind("="), word.rfind(":")) + 1
    return [one[cut:] for one in found]


def _words(line: str) -> list[str]:
    """The words of the line; the last one is "" after a space."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that is still open
        words = line.split()
    return words if words and not line[-1:].isspace() else [*words, ""]


def _of_command(parser: Parser, before: Sequence[str], word: str) -> Iterable[str]:
    """All that may follow the words `before` of a command and begins as `word`."""
    options = {flag: action for action in parser.actions for flag in action.option_strings}
    places = iter([action for action in parser.actions if not action.option_strings])
    place, option, given = next(places, None), None, list[str]()
    for one in before:
        if option is not None and not one.startswith("-"):
            option = None
        elif one.startswith("-"):
            option = options.get(one)
            option = None if option is None or option.nargs == 0 else option
        else:
            given.append(one)
            place = place if place is not None and place.nargs == "*" else next(places, None)
    flag, equals, _ = word.partition("=")
    if equals and flag in options:
        return [f"{flag}={value}" for value in _values(options[flag], parser.prog, given)]
    if word.startswith("-"):
        return options
    action = option or place
    if action is not None and action.metavar == "section.key=value":
        return [one for one in _assignments(given) if one.endswith("=") != ("=" in word)]
    return [] if action is None else _values(action, parser.prog, given)


def _values(action: argparse.Action, command: str, given: Sequence[str]) -> Iterable[str]:
    """The values of an option or argument. given: the arguments before, such as the recipe."""
    from scaledit.config import COMMANDS, recipe_names

    if action.choices is not None:
        return map(str, action.choices)
    if action.metavar == "RECIPE":
        trains = next((kind for kind, trainer in COMMANDS.items() if trainer.startswith(command)), None)
        return recipe_names(trains)
    source = SOURCES.get(str(action.metavar))
    return [] if source is None else source()


def _samplers() -> Iterable[str]:
    from scaledit.diffusion.samplers import Sampler
    from scaledit.part import names

    return names(Sampler)


def _studies() -> Iterable[str]:
    from scaledit.scaling import study

    return [*study.names(), "paper"]


def _gpus() -> Iterable[str]:
    from scaledit.scaling.devices import PEAKS

    return PEAKS


SOURCES: Mapping[str, Callable[[], Iterable[str]]] = {
    "SAMPLER": _samplers,
    "STUDY": _studies,
    "GPU": _gpus,
    "DEVICE": lambda: ("auto", "cpu", "cuda", "mps"),
    "REF": lambda: ("digits", "photos", "emoji"),
}
"""By the metavar of an option or argument; values of others are paths."""


def _assignments(given: Sequence[str]) -> Iterator[str]:
    """section.key=value: keys with =, and values where a key has a choice. given: the arguments before."""
    from scaledit.autoencoders.config import AutoencoderRun
    from scaledit.config import RunConfig, recipe_names
    from scaledit.config.tables import section_types
    from scaledit.values import hints

    is_recipe = any(word in recipe_names(None) or word.endswith(".toml") for word in given)
    trains_autoencoder = given[:1] == ["train"]
    for section, kind in section_types(AutoencoderRun if trains_autoencoder else RunConfig).items():
        if is_recipe or section in common.SECTIONS:
            for key, annotation in hints(kind).items():
                yield from _of_key(f"{section}.{key}", annotation)


def _of_key(key: str, annotation: Any) -> Iterator[str]:
    from scaledit.config.tables import parts_kind
    from scaledit.part import describe, names, part_kind

    yield f"{key}="
    if (kind := part_kind(annotation)) is not None:
        yield from (f"{key}={name}" for name in names(kind))
        yield from (f"{key}.{field.name}=" for part in describe(kind) for field in part.fields)
    elif (kind := parts_kind(annotation)) is not None:
        yield from (f"{key}={name}" for name in names(kind))
        yield from (f"{key}.{part.name}.{field.name}=" for part in describe(kind) for field in part.fields)
    elif get_origin(annotation) is Literal:
        yield from (f"{key}={value}" for value in get_args(annotation))
    elif annotation is bool:
        yield from (f"{key}=true", f"{key}=false")
