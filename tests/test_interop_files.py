"""The files that `scaledit convert` writes: complete or not at all, and read by the programs they are for."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file

from layouts import HEADS, OPTIONS, config, convert, distance, equal, inputs, official_state, random_dit
from scaledit import part
from scaledit.cli import main
from scaledit.errors import RunError, UsageError
from scaledit.files.manifest import sealed
from scaledit.interop import onnx_file, program
from scaledit.interop.convert import Layout, open_model
from scaledit.interop.pickled import open_pickled
from scaledit.models.blocks import Block

OUT = {
    "scaledit": "out",
    "official": "out.pt",
    "official, safetensors": "out.safetensors",
    "diffusers": "out",
    "program": "out.pt2",
    "onnx": "out.onnx",
}
"""Every writer."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "in.pt"
    torch.save(official_state(random_dit(config())), path)
    return path


def test_every_layout_is_tried():
    """But for PEFT's, whose writer needs a LoRA run and uses the folder of scaledit's: tests/test_lora.py."""
    assert {layout.partition(",")[0] for layout in OUT} == set(get_args(Layout)) - {"peft"}


def arguments(source: Path, out: Path, layout: str) -> list[str]:
    return ["convert", str(source), str(out), "--to", layout.partition(",")[0], *OPTIONS]


LIMITED = (  # files may grow to 20 kB, the weights have 60: writing fails as on a full disk
    "import resource, signal, sys\n"
    "from scaledit.cli import main\n"
    "import scaledit.interop.convert, scaledit.interop.program, scaledit.interop.onnx_file\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    "for line in sys.stdin:\n"
    "    print('rc', main(line.split()), file=sys.stderr, flush=True)\n"
)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files there")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(source: Path, tmp_path: Path):
    """All writers in one process, so that one that aborts the process is noticed."""
    lines = "\n".join(" ".join(arguments(source, tmp_path / out, layout)) for layout, out in OUT.items())
    done = subprocess.run([sys.executable, "-c", LIMITED], input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("rc 1\n") == len(OUT), done.stderr
    assert "Traceback" not in done.stderr
    for out in OUT.values():
        assert f"scaledit: could not write {tmp_path / out}: File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "file").write_text("")
    for layout, out in OUT.items():
        assert main(arguments(source, tmp_path / "file" / out, layout)) == 1
        assert f"could not write {tmp_path / 'file' / out}: " in capsys.readouterr().err


INTERRUPTED = (  # Ctrl-C in the middle of the weights
    "import os, signal, sys\n"
    "import scaledit.interop.lazy_tensors as lazy_tensors, scaledit.interop.pickled as pickled\n"
    "from scaledit.cli import main\n"
    "whole = lazy_tensors.bytes_of\n"
    "def bytes_of(name, lazy):\n"
    "    if 'blocks.1' in name: os.kill(os.getpid(), signal.SIGINT)\n"
    "    return whole(name, lazy)\n"
    "lazy_tensors.bytes_of = pickled.bytes_of = bytes_of\n"
    "for line in sys.stdin:\n"
    "    print('rc', main(line.split()), file=sys.stderr, flush=True)\n"
)


def test_ctrl_c_leaves_nothing(source: Path, tmp_path: Path):
    layouts = [layout for layout in OUT if layout not in ("program", "onnx")]  # written in one piece
    lines = "\n".join(" ".join(arguments(source, tmp_path / OUT[layout], layout)) for layout in layouts)
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("rc 130\n") == len(layouts), done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_existing_files_are_kept(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    for layout, name in OUT.items():
        out = tmp_path / layout.replace(", ", "-") / name
        out.parent.mkdir()
        out.write_text("mine")
        assert main(arguments(source, out, layout)) == 2
        assert "exists; choose another name" in " ".join(capsys.readouterr().err.split())
        assert out.read_text() == "mine"


def test_a_pt_is_what_torch_save_writes(source: Path, tmp_path: Path):
    """In every dtype; torch.load(weights_only=True) reads it, mapped too, and so does scaledit."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        state = {key: value.to(dtype) for key, value in torch.load(source).items()}
        torch.save(state, tmp_path / f"{dtype}.pt")
        convert(tmp_path / f"{dtype}.pt", tmp_path / f"{dtype}-out.pt", "--to", "official", *OPTIONS)
        for mapped in (False, True):
            back = torch.load(tmp_path / f"{dtype}-out.pt", weights_only=True, mmap=mapped)
            assert list(back) == list(state) and equal(back, state)
        read = open_pickled(tmp_path / f"{dtype}-out.pt").parts[""]
        assert equal({key: lazy.read() for key, lazy in read.items()}, state)


def run_onnx(path: Path, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    assert len(names) == 3
    feed = dict(zip(names, (x.numpy(), t.float().numpy(), y.numpy()), strict=True))
    return torch.from_numpy(session.run(None, feed)[0])


@pytest.mark.parametrize("conditioning", part.names(Block))
@torch.no_grad()
def test_onnx_has_the_networks_outputs(conditioning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Within 1e-5 of the largest output, for batches of 1, 3 and 4, for all times and the null label; for one
    design with the weights in a file of their own."""
    import onnx

    files = ["in.safetensors", "out.onnx"]
    if conditioning == "adaln":
        monkeypatch.setattr(onnx_file, "LARGEST_INSIDE", 1000)
        files.append("out.onnx.data")
    dit = random_dit(config(depth=1, conditioning=conditioning))
    save_file(dict(dit.state_dict()), tmp_path / "in.safetensors")
    options = ["--heads", HEADS, "--patch-size", 2, "--input-size", 8]
    convert(tmp_path / "in.safetensors", tmp_path / "out.onnx", "--to", "onnx", *options)
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    x, t, y = inputs(config())
    for n in (1, 3, 4):
        assert (
            distance(run_onnx(tmp_path / "out.onnx", x[:n], t[:n], y[:n]), dit(x[:n], t[:n], y[:n])) <= 1e-5
        )
    model = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert [item.name for item in model.graph.input] == ["x", "t", "y"]
    assert {item.type.tensor_type.shape.dim[0].dim_param for item in model.graph.input} == {"batch"}
    (metadata,) = (json.loads(item.value) for item in model.metadata_props if item.key == onnx_file.METADATA)
    assert metadata["num_classes"] == 5


@torch.no_grad()
def test_onnx_of_an_exported_program(tmp_path: Path):
    """A program of `--to program` passes through torch's own exporter."""
    dit = random_dit(config(depth=1))
    program.save(dit, tmp_path / "out.pt2")
    exported = torch.export.load(tmp_path / "out.pt2")
    exported_onnx = torch.onnx.export(exported, dynamo=True, verbose=False)
    assert exported_onnx is not None
    exported_onnx.save(tmp_path / "out.onnx")
    assert distance(run_onnx(tmp_path / "out.onnx", *inputs(config())), dit(*inputs(config()))) <= 1e-5


def test_onnx_without_the_extra(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(arguments(source, tmp_path / "out.onnx", "onnx")) == 2
    assert 'pip install "scaledit[onnx]"' in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_files_that_are_not_programs(source: Path, tmp_path: Path):
    """Truncated programs, and other files."""
    program.save(random_dit(config(depth=1)), tmp_path / "fine.pt2")
    whole = (tmp_path / "fine.pt2").read_bytes()
    for data in (b"", b"{}", whole[:10], whole[:-100], whole[: len(whole) // 2], source.read_bytes()):
        (tmp_path / "x.pt2").write_bytes(data)
        with pytest.raises(UsageError, match="is not a program that scaledit exported") as caught:
            program.load(tmp_path / "x.pt2", trusted=True)
        assert "\n" not in str(caught.value)


ODD = (None, -1, 1.5, 10**9, float("nan"), "x", [], {}, [1, 2, 3], [None])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested dicts and lists."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield (*path, key)
        if isinstance(value[key], dict | list) and len(path) < 3:
            yield from places(value[key], (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


@pytest.mark.parametrize(
    ("layout", "file"),
    [
        ("scaledit", "manifest.json"),
        ("diffusers", "transformer/config.json"),
        ("diffusers", "scheduler/scheduler_config.json"),
        ("diffusers", "scaledit.json"),
        ("diffusers", "transformer/diffusion_pytorch_model.safetensors.index.json"),
    ],
)
def test_json_that_makes_no_sense_is_one_sentence(layout: str, file: str, source: Path, tmp_path: Path):
    """Every value of the file in turn becomes one of another type: the folder is opened or refused."""
    shards = ["--max-shard-size", "30KB"] if layout == "diffusers" else []
    convert(source, tmp_path / "x", "--to", layout, *OPTIONS, *shards)
    written = json.loads((tmp_path / "x" / file).read_bytes())
    written.pop("sha256", None)
    rng, refused = random.Random(0), 0
    for path in places(written):
        value = changed(written, path, rng.choice(ODD))
        data = sealed(value) if file == "manifest.json" else json.dumps(value).encode()
        (tmp_path / "x" / file).write_bytes(data)
        try:
            open_model(tmp_path / "x")
        except (UsageError, RunError) as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 3
    (tmp_path / "x" / file).write_bytes(b"[" * 100_000)
    with pytest.raises((UsageError, RunError), match="cannot be read"):
        open_model(tmp_path / "x")


@pytest.mark.parametrize("claim", [{"depth": 10**9}, {"hidden_size": 1 << 30}, {"input_size": 1 << 20}])
def test_a_network_that_is_claimed_is_not_converted(claim: dict[str, int], source: Path, tmp_path: Path):
    """A claim that no weight supports is refused before anything is written, in every layout."""
    convert(source, tmp_path / "x", "--to", "scaledit", *OPTIONS)
    manifest = json.loads((tmp_path / "x/manifest.json").read_bytes())
    del manifest["sha256"]
    manifest["config"]["model"] |= claim
    (tmp_path / "x/manifest.json").write_bytes(sealed(manifest))
    for layout, out in OUT.items():
        assert main(arguments(tmp_path / "x", tmp_path / "y" / out, layout)) == 2
