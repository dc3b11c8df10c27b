"""Progress: what is printed in a pipe and how often, what `quiet` leaves, and how durations read."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaledit import terminal
from scaledit.progress import Estimate, Lines, Pace, StudyProgress, TrainingProgress, duration, shown
from scaledit.scaling.queue import Job, Queue
from scaledit.training.events import (
    CorruptCheckpoint,
    DataChanged,
    Event,
    Finished,
    Halved,
    Remarked,
    RolledBack,
    Skipped,
    Spiked,
    Started,
    Stepped,
    Stopped,
    Verifying,
)


class Time:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(terminal.QUIET, raising=False)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(terminal.QUIET, "")  # so that it is restored
    terminal.quiet()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (48.4, "48 s"),
        (60, "1 min"),
        (340, "5 min 40 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h"),
        (12_000, "3 h 20 min"),
        (187_200, "2 days 4 h"),
        (172_800, "2 days"),
    ],
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


def test_the_time_left_counts_what_this_process_did():
    clock = Time()
    estimate = Estimate(clock)
    estimate.begin(600)
    assert estimate.left(600, 800) is None
    clock.now += 10
    assert estimate.left(650, 800) == 30
    assert estimate.left(800, 800) is None
    assert estimate.left_in_words(650, 800) == ", 30 s left"
    assert estimate.left_in_words(550, 800) == ""  # rolled back to before the start


def test_lines_come_less_often_as_time_passes():
    clock = Time()
    pace = Pace(clock)
    due = []
    for _ in range(3600):
        clock.now += 1
        if pace.due():
            due.append(int(clock.now - 100))
    gaps = [after - before for before, after in itertools.pairwise(due)]
    assert due[:3] == [10, 20, 30] and gaps == sorted(gaps) and gaps[-1] > 150 and len(due) < 80


def lines(steps: list[tuple[float, int, int]]) -> list[str]:
    """What `Lines` says of calls at (seconds, done, total)."""
    clock, said = Time(), []
    progress = Lines("sampling", said.append, clock)
    for seconds, done, total in steps:
        clock.now = 100 + seconds
        progress(done, total)
    return said


def test_short_work_says_nothing_in_a_pipe():
    assert lines([(1, 10, 30), (2, 20, 30), (3, 30, 30)]) == []


def test_long_work_says_how_far_it_is_and_when_it_ends():
    assert lines([(0, 0, 40), (8, 10, 40), (16, 20, 40), (24, 30, 40), (32, 40, 40), (33, 40, 40)]) == [
        "sampling 20/40, 16 s left",
        "sampling 40/40, after 32 s",
    ]


def test_work_that_an_earlier_process_did_does_not_count():
    assert lines([(0, 900, 1000), (20, 920, 1000)]) == ["sampling 920/1000, 1 min 20 s left"]


def test_a_second_phase_has_its_own_speed():
    said = lines([(0, 0, 10), (12, 10, 10), (13, 0, 100), (33, 10, 100)])
    assert said == ["sampling 10/10, after 12 s", "sampling 10/100, 3 min left"]


def test_what_is_shown_in_a_pipe_goes_to_stderr(capsys: pytest.CaptureFixture):
    clock = Time()
    with shown("sampling [bold]", clock) as progress:
        progress(0, 40)
        clock.now += 20
        progress(10, 40)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "sampling [bold] 10/40, 1 min left\n")


def test_nothing_is_shown_when_quiet(quiet: None, capsys: pytest.CaptureFixture):
    clock = Time()
    with shown("sampling", clock) as progress:
        progress(0, 40)
        clock.now += 20
        progress(10, 40)
    terminal.inform("20 images in x.png")
    assert capsys.readouterr() == ("", "")


def test_results_and_errors_are_printed_when_quiet(quiet: None, capsys: pytest.CaptureFixture):
    terminal.say("a result")
    terminal.say_json({"out": "x.png"})
    terminal.table(["", "FID"], [["ours", "2.27"]])
    terminal.facts([("steps", 3)], 8)
    terminal.warn("few images")
    terminal.complain("no such file")
    said = capsys.readouterr()
    for line in ("a result", '{"out": "x.png"}', "ours  2.27", "steps   3", "warning: few images"):
        assert line in said.out
    assert said.err == "scaledit: no such file\n"


def test_the_environment_makes_it_quiet(monkeypatch: pytest.MonkeyPatch):
    for value, expected in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv(terminal.QUIET, value)
        assert terminal.is_quiet() == expected


def stepped(step: int, seconds: float) -> Stepped:
    return Stepped(step, 0.4858, {}, 1.0, 1e-4, seconds, 661.2, 1e9, 0.3, 0.0, 1 << 20, 0.0)


def started(step: int = 0) -> Started:
    return Started("digits", step, 800, "cpu", 1, 2_000_000, 3_000_000, 1_437)


def trained(events: list[tuple[float, Event]], resume: str = "") -> list[str]:
    """What a training says in a pipe of events at these seconds."""
    clock, screen = Time(), io.StringIO()
    console = terminal.console(stderr=True)
    console.file = screen
    with TrainingProgress(console, resume, clock) as progress:
        for seconds, event in events:
            clock.now = 100 + seconds
            progress(event)
    return screen.getvalue().splitlines()


def test_a_training_in_a_pipe_has_totals_and_time_left():
    said = trained(
        [(0, started()), (10, stepped(200, 9.6)), (40, stepped(800, 36)), (41, Finished(800, 36, 0))]
    )
    assert said == [
        "digits: 2.00 M parameters, 0.003 G multiply-adds per image, 1437 training images, on cpu",
        "step 200/800  loss 0.4858  661 images/s  after 10 s, 30 s left",
        "step 800/800  loss 0.4858  661 images/s  after 36 s",
    ]


def test_a_resumed_training_estimates_from_its_own_speed():
    said = trained([(0, started(600)), (20, stepped(650, 500))])
    assert said[0].endswith(", resumed at step 600")
    assert said[1] == "step 650/800  loss 0.4858  661 images/s  after 8 min 20 s, 1 min left"


def test_verifying_long_in_a_pipe_says_how_far_it_is():
    mb = 1_000_000
    said = trained([(0, Verifying(0, 90 * mb)), (30, Verifying(30 * mb, 90 * mb))])
    assert said == ["checking the latents, MB 30/90, 1 min left"]
    assert trained([(0, Verifying(0, mb)), (1, Verifying(mb, mb))]) == []


TROUBLE: list[Event] = [
    Skipped(3, float("nan"), 2.0, 1, 4, [1, 2], [2]),
    Spiked(4, 9.0, 3.0, [7, 8]),
    RolledBack(2, 4, 2),
    CorruptCheckpoint(2, Path("step-00000004.corrupt"), "step-00000004 is corrupt"),
    DataChanged(2, ["3 more images"]),
    Halved(5, 16),
    Stopped(6, "SIGINT"),
]


def test_a_quiet_training_still_says_what_went_wrong(quiet: None):
    events = [started(), stepped(2, 1.0), Remarked(("the split train is read",)), *TROUBLE]
    said = trained([(0, event) for event in events], "to resume, run: scaledit train runs/digits")
    assert len(said) == len(TROUBLE)
    assert said[0] == (
        "step 3 was skipped and changed no weight: its loss was nan, its gradient norm 2.0 "
        "(1 in a row, 4 in total)"
    )
    assert said[-1] == (
        "stopped by SIGINT after step 6, which is saved; to resume, run: scaledit train runs/digits"
    )


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    yield Queue(tmp_path / "study", [Job(key, {}, 1.0) for key in ("a", "b", "c")])


def test_a_study_in_a_pipe(queue: Queue, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    clock, done = Time(), {"a"}
    monkeypatch.setattr(Queue, "done", lambda _, key: key in done)
    monkeypatch.setattr(Queue, "progress", lambda *_: 0.0)
    with StudyProgress({"a": 50.0, "b": 25.0, "c": 25.0}, clock) as progress:
        progress.look(queue)
        clock.now += 4
        progress.look(queue)
        done.add("b")
        clock.now += 26
        progress.look(queue)
    assert capsys.readouterr().err == "study 75%, 2/3 jobs, 30 s left\n"
