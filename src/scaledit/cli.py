"""The command line. Each command imports what it needs when it runs, so that --help and wrong calls are
answered at once.

Exit codes: 0 success, 1 failure, 2 a wrong call, 130 interrupted; 75 and 143 are explained in commands.rank.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import NoReturn

from scaledit import __version__, terminal
from scaledit.commands import (
    autoencoder,
    convert,
    data,
    encode,
    evaluate,
    generate,
    models,
    paper,
    plan,
    recipes,
    reference,
    sample,
    study,
    train,
)
from scaledit.errors import RunError, UsageError, did_you_mean
from scaledit.posix import POSIX, STOP_SIGNALS


class Parser(argparse.ArgumentParser):
    """argparse that raises UsageError with the closest option and lets options and arguments mix. more: makes
    the text below the options in --help."""

    more: Callable[[], str] | None = None

    def format_help(self) -> str:
        return f"{super().format_help()}{'' if self.more is None else self.more()}"

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (\S+): must ", r"\1 must ", message)  # from commands.common.integer
        message = re.sub(r"^argument (\S+): invalid int value: ", r"\1 must be a whole number, got ", message)
        message = re.sub(r"^argument (\S+): invalid float value: ", r"\1 must be a number, got ", message)
        raise UsageError(f"{message}; see {self.prog} --help")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        parsed, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            options = [
                option for action in self._actions for option in action.option_strings if option[1] == "-"
            ]
            word = unknown[0].partition("=")[0]
            hint = did_you_mean(word, options) if word.startswith("-") else f"; see {self.prog} --help"
            raise UsageError(f"unknown argument {unknown[0]!r}{hint}")
        return parsed


COMMANDS = {
    "train": train,
    "autoencoder": autoencoder,
    "data": data,
    "encode": encode,
    "sample": sample,
    "generate": generate,
    "convert": convert,
    "evaluate": evaluate,
    "reference": reference,
    "models": models,
    "paper": paper,
    "plan": plan,
    "study": study,
    "recipes": recipes,
}

# How long an OpenMP thread spins for the others before it sleeps; read when torch is loaded. With the
# default, a training step on 2 cores takes 30 times as long while another program runs; with this value 2.5
# times, at a cost of 5 % on a quiet machine (docs/log.md).
SPIN_COUNT = "1000"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    argv: the arguments, or None for those of this process. A Python program that passes them gets its signal
    handlers back.
    """
    with nullcontext() if argv is None else _handlers_restored():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(arguments: list[str]) -> int:
    _interruptible()
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    terminal.survive()
    try:
        return _dispatch(arguments)
    except UsageError as error:
        terminal.complain(error)
        return 2
    except RunError as error:
        terminal.complain(error)
        return 1
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        terminal.complain(f"{where}{error.strerror or error}")
        return 1
    except KeyboardInterrupt as error:
        terminal.complain(f"interrupted; {error}" if str(error) else "interrupted")
        return 130


@contextmanager
def _handlers_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: installed by other code than Python's.
            if handler is not None and handler != signal.getsignal(number):
                signal.signal(number, handler)


def _interruptible() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt except while modules are imported, where torch's C++ extensions
    would abort the process."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the caller has its own handler
        signal.signal(signal.SIGINT, _on_interrupt)
    if POSIX:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # scaledit.children blocked it


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    current = frame
    while current is not None:
        if current.f_code.co_filename == "<frozen importlib._bootstrap>":
            if os.environ.get("RANK", "0") == "0":  # one message for all ranks
                os.write(2, b"scaledit: interrupted\n")
            os._exit(130)
        current = current.f_back
    signal.default_int_handler(number, frame)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        terminal.say(*_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        terminal.say(f"scaledit {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        raise UsageError(f"unknown command {name!r}{did_you_mean(name, COMMANDS)}")
    command = COMMANDS[name]
    parser = Parser(
        prog=f"scaledit {name}",
        description=command.SUMMARY,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.arguments(parser)
    parser.more = getattr(command, "more", None)
    return command.run(parser.parse(arguments[1:])) or 0


def _overview() -> list[str]:
    lines = [f"  {name:<12}{command.SUMMARY.splitlines()[0]}" for name, command in COMMANDS.items()]
    return [
        "usage: scaledit COMMAND ...",
        "",
        "Diffusion Transformers end to end.",
        "",
        *lines,
        "",
        "scaledit COMMAND --help says more.",
    ]


if __name__ == "__main__":
    sys.exit(main())
