"""Every reader of files that people hand in, with small valid files for each (see `fuzz`)."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mutate
import numpy as np
import torch
from fuzz import Reader, Value, digest
from PIL import Image

import pictures
from layouts import HEADS, config, convert, official_state, random_dit
from scaledit import checkpoint
from scaledit.data import decode
from scaledit.errors import RunError
from scaledit.files.manifest import sealed, sha256_of
from scaledit.training.folder import write_status
from tiny import tiny
from tracked import shown_training

BYTES, JSON, JSON_LINES, RESEALED = mutate.corrupt, mutate.json_text, mutate.json_lines, mutate.resealed
TOML, CSV, PNG, SAFETENSORS = mutate.toml_text, mutate.csv_text, mutate.png, mutate.safetensors
TEXT = mutate.one_of({mutate.corrupt: 1, mutate.as_text: 1})
MAYBE_SEALED = mutate.one_of({JSON: 1, RESEALED: 2})

NPZ = mutate.zipped(lambda name: mutate.npy)
PICKLED = mutate.zipped(lambda name: mutate.pickle_code if name.endswith(".pkl") else mutate.corrupt)
PICTURES = mutate.zipped(lambda name: mutate.png if name.endswith(".png") else mutate.corrupt)
PROGRAM = mutate.zipped(lambda name: mutate.json_text if name.endswith(".json") else mutate.corrupt)


def digests(values: Mapping[Any, Any]) -> Value:
    return {str(key): digest(value) for key, value in values.items()}


def shared(folder: Path, name: str, make: Callable[[Path], object]) -> Path:
    """What several readers' files are made of, beside them."""
    place = folder.parent / f"shared-{name}"
    if not place.exists():
        partial = folder.parent / f"shared-{name}.partial"
        partial.mkdir()
        make(partial)
        partial.rename(place)
    return place


def still_zip(path: Path) -> None:
    """The same archive without the time at which it was made."""
    with zipfile.ZipFile(path) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in members:
            archive.writestr(zipfile.ZipInfo(info.filename), data, info.compress_type)


def still_tar(path: Path) -> None:
    """The same archive without the times of its files and who made it."""
    with tarfile.open(path) as archive:
        members = [(entry, archive.extractfile(entry)) for entry in archive]
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as still:
            for entry, data in members:
                entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
                entry.pax_headers = {}
                still.addfile(entry, data)
    packed = path.suffix == ".gz"
    path.write_bytes(gzip.compress(buffer.getvalue(), mtime=0) if packed else buffer.getvalue())


# Images and sets of them


def _saved(folder: Path, suffix: str, modes: tuple[str, ...]) -> None:
    """One image per mode, in class folders."""
    for i, mode in enumerate(modes):
        picture = Image.fromarray(pictures.picture(i)).convert(mode)
        (folder / "class").mkdir(exist_ok=True)
        picture.save(folder / "class" / f"{mode}{suffix}")


def _pngs(folder: Path) -> None:
    _saved(folder, ".png", ("RGB", "L", "P", "1", "RGBA", "LA"))
    picture = Image.fromarray(pictures.picture(9)).convert("P")
    picture.info["transparency"] = 3
    picture.save(folder / "class" / "transparent.png")
    _ramp().save(folder / "class" / "sixteen.png")


def _ramp() -> Image.Image:
    """Of 16-bit gray."""
    return Image.fromarray((np.arange(44 * 36, dtype=np.uint16) * 41).reshape(36, 44))


def _jpegs(folder: Path) -> None:
    _saved(folder, ".jpg", ("RGB", "L", "CMYK"))
    picture, exif = Image.fromarray(pictures.picture(7)), Image.Exif()
    exif[decode.ORIENTATION] = 6
    picture.save(folder / "class" / "turned.jpg", exif=exif)
    picture.save(folder / "class" / "progressive.jpg", progressive=True)


def _tiffs(folder: Path) -> None:
    _saved(folder, ".tif", ("RGB", "L", "1", "RGBA", "CMYK"))
    _ramp().save(folder / "class" / "sixteen.tif")
    for how in ("tiff_lzw", "jpeg", "tiff_adobe_deflate"):
        Image.fromarray(pictures.picture(8)).save(folder / "class" / f"{how}.tif", compression=how)


def _each(source: Any) -> dict[str, bytes]:
    """The bytes of every entry that can be read; the others must say in a line why not."""
    found = {}
    for i in range(len(source)):
        try:
            name = f"{source.names[i]} of {source.class_names[source.labels[i]]}"
            found[name] = source.read(i)
        except RunError as error:
            _one_line(error)
    return found


def _one_line(error: RunError) -> None:
    if len(str(error).splitlines()) != 1:
        raise AssertionError(f"a message of several lines: {str(error)!r}") from error


def _decoded(folder: Path) -> Value:
    """Every image as training sees it, and as `data inspect` does."""
    from scaledit.data import inspection
    from scaledit.data.files import ImageFiles
    from scaledit.data.sources import open_source

    files = ImageFiles(open_source(folder), 32)
    images = files.read(range(len(files)))
    looked = inspection.images(folder, 32, False, 1)
    print("\n".join(looked.lines()), json.dumps(looked.to_json()))
    for image in images:
        if isinstance(image, decode.BadImage):
            raise image
    return digests(dict(zip(files.names, images, strict=True)))


def _decoded_set(folder: Path) -> Value:
    return _decoded(folder / "set")


def _entries(folder: Path) -> Value:
    """What a set holds, entry by entry, undecoded; inspected too."""
    from scaledit.data import inspection
    from scaledit.data.sources import open_source

    path = next(folder.iterdir(), folder / "set")  # gone, where the damage is that it is missing
    source = open_source(path)
    _ = source.fingerprint
    found = digests(_each(source))
    looked = inspection.images(path, 32, True, 1)
    print("\n".join(looked.lines()), json.dumps(looked.to_json()))
    return found


def _zip(folder: Path) -> None:
    pictures.zipped(folder / "set.zip")
    still_zip(folder / "set.zip")
    shutil.rmtree(folder / "set.tmp")


def _tar(folder: Path) -> None:
    pictures.tar_tree(folder / "set.tar")
    still_tar(folder / "set.tar")
    shutil.rmtree(folder / "set.tmp")


def _shards(folder: Path) -> None:
    pictures.shards(folder / "set")


def _labelled_json(folder: Path) -> None:
    """A shard whose labels are JSON."""
    with tarfile.open(folder / "set.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for i in range(4):
            suffix, data = pictures.encoded(i)
            label = json.dumps({"label": ("cat", "dog")[i % 2]}).encode()
            for name, content in ((f"{i}é{suffix}", data), (f"{i}é.json", label)):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def _odd_names(folder: Path) -> None:
    """Names that a file system takes and printers may not."""
    root = bytes(folder / "set")
    for i, name in enumerate((b"\xff\xfe", b"two\nlines", b"\x1b[2J", b"[red]", b"plain")):
        Path((root + b"/" + name).decode("utf-8", "surrogateescape")).mkdir(parents=True)
        for k in range(2):
            suffix, data = pictures.encoded(3 * i + k)
            where = root + b"/" + name + b"/" + name + str(k).encode() + suffix.encode()
            Path(where.decode("utf-8", "surrogateescape")).write_bytes(data)


# Latents


def _images_and_cache(folder: Path) -> None:
    pictures.tree(folder / "images")
    _encode(folder, False)


def _encode(folder: Path, repair: bool) -> None:
    from scaledit.autoencoders import open_autoencoder
    from scaledit.autoencoders.cache import Encoding, encode
    from scaledit.data.files import ImageFiles
    from scaledit.data.sources import open_source

    source = ImageFiles(open_source(folder / "images"), 16)
    encode(source, open_autoencoder("pixels"), folder / "out", Encoding(per_file=5), repair=repair)


def _cache(folder: Path) -> None:
    made = shared(folder, "cache", _images_and_cache)
    shutil.copytree(made / "out", folder, dirs_exist_ok=True)


def _with_held_out(folder: Path) -> None:
    from scaledit.data import held_out
    from scaledit.data.files import ImageFiles
    from scaledit.data.sources import open_source

    pictures.tree(folder / "images")
    held_out.write(folder, ImageFiles(open_source(folder / "images"), 16), 0.5)


def _held_out(folder: Path) -> Value:
    from scaledit.evaluation.own import stored_images

    found = stored_images(folder)
    if found is None:
        raise RunError("there is no record")
    return digests({"record": found.record, "images": found.images, "labels": found.labels})


def _held_out_resealed(folder: Path) -> Value:
    """A corrupt file of images of which the record says that it is right."""
    record = json.loads((folder / "held-out.json").read_bytes())
    del record["sha256"]
    path = folder / "held-out.npz"
    if path.is_file():
        record["file_size"], record["file_sha256"] = path.stat().st_size, sha256_of(path)
    (folder / "held-out.json").write_bytes(sealed(record))
    return _held_out(folder)


def _half_encoded(folder: Path) -> None:
    shutil.copytree(shared(folder, "cache", _images_and_cache), folder, dirs_exist_ok=True)
    (folder / "out/index.json").unlink()


def _whole_cache(folder: Path) -> None:
    shutil.copytree(shared(folder, "cache", _images_and_cache), folder, dirs_exist_ok=True)


def _encoded(repair: bool) -> Callable[[Path], Value]:
    """What was made before is believed by its size; who reads the cache compares every byte."""
    from scaledit.data.latents import Latents

    def read(folder: Path) -> Value:
        _encode(folder, repair)
        list(Latents.open(folder / "out", flip=True).verify())
        return {path.name: sha256_of(path) for path in sorted((folder / "out").glob("*.safetensors"))} | {
            "index": sha256_of(folder / "out/index.json")
        }

    return read


def _latents(folder: Path) -> Value:
    from scaledit.data import inspection
    from scaledit.data.latents import Latents

    opened = Latents.open(folder, flip=True)
    list(opened.verify())
    batch = opened.batch(np.arange(len(opened)), range(len(opened)), seed=0)
    looked = inspection.latents(folder)
    print("\n".join(looked.lines()), json.dumps(looked.to_json()))
    return digests({"x0": batch.x0, "y": batch.y, "index": opened.index})


def _latents_resealed(folder: Path) -> Value:
    """A corrupt shard of which the index says that it is right."""
    index = json.loads((folder / "index.json").read_bytes())
    del index["sha256"]
    for shard in index["shards"]:
        path = folder / shard["file"]
        if path.is_file():
            shard["size"], shard["sha256"] = path.stat().st_size, sha256_of(path)
    (folder / "index.json").write_bytes(sealed(index))
    return _latents(folder)


# Runs and checkpoints


def _train(folder: Path) -> None:
    run = tiny(
        "train.steps=4",
        "checkpoint.every=2",
        "checkpoint.background=false",
        "evaluate.every=2",
        "evaluate.num=12",
        "evaluate.seeds=1",
        "sample.every=4",
        "sample.per_class=1",
        "sample.classes=2",
    )
    _go_on(run, folder / "run")
    write_status(folder / "run", "finished", 4, exit_code=0)
    _timeless(folder / "run")


TIMES = {"seconds", "images_per_second", "macs_per_second", "mfu", "data_wait", "memory"}


def _timeless(run: Path) -> None:
    """The same run as if it had taken no time, so that every training of it gives the same bytes."""

    def still(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            key: 0.5 if key in TIMES else "" if key == "time" else still(one) for key, one in value.items()
        }

    shutil.rmtree(run / ".run")
    lines = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text("".join(json.dumps(still(json.loads(line))) + "\n" for line in lines))
    (run / "status.json").write_text(
        json.dumps(still(json.loads((run / "status.json").read_text())), indent=1)
    )
    for path in run.glob("checkpoints/*/manifest.json"):
        manifest = still(json.loads(path.read_bytes()))
        del manifest["sha256"]
        path.write_bytes(sealed(manifest))


def _go_on(run: Any, out: Path) -> None:
    from scaledit.training.dit import train

    shown_training(train(run, out, resume="auto", device="cpu"), out)


def _run(folder: Path) -> None:
    shutil.copytree(shared(folder, "run", _train) / "run", folder, dirs_exist_ok=True)


def _checkpoint(folder: Path) -> None:
    run = shared(folder, "run", _train) / "run"
    shutil.copytree(checkpoint.find(run / "checkpoints")[-1], folder / "step-00000004")


def _tensors(folder: Path) -> Value:
    opened = checkpoint.open_checkpoint(folder / "step-00000004")
    opened.verify()
    state = dict(opened.manifest, files=sorted(opened.files))
    parts = {name: opened.tensors(name.removesuffix(".safetensors")) for name in state["files"]}
    return digests({"manifest": state, **parts})


def _fitting(folder: Path) -> Path:
    """Makes a checkpoint's manifest say that its files are right."""
    place = folder / "step-00000004"
    manifest = json.loads((place / "manifest.json").read_bytes())
    del manifest["sha256"]
    for name in manifest["files"]:
        if (place / name).is_file():
            size = (place / name).stat().st_size
            manifest["files"][name] = {"size": size, "sha256": sha256_of(place / name)}
    (place / "manifest.json").write_bytes(sealed(manifest))
    return place


def _loaded(place: Path) -> Value:
    import scaledit

    pipeline = scaledit.load(place, device="cpu")
    about = {"config": pipeline.config, "classes": pipeline.class_names, "origin": pipeline.origin}
    return digests({**about, **pipeline.net.state_dict()})


def _tensors_and_model(folder: Path) -> Value:
    return {**_tensors(folder), **_loaded(folder / "step-00000004")}


def _loaded_resealed(folder: Path) -> Value:
    return {**_loaded(_fitting(folder)), **_tensors(folder)}


def _resumed(folder: Path) -> Value:
    """Two steps more; the weights at the end."""
    run = json.loads((folder.parent / "shared-run/run/config.json").read_bytes())
    from scaledit.config import RunConfig

    run["train"]["steps"] = 6
    _go_on(RunConfig.from_json(run), folder)
    opened = checkpoint.open_checkpoint(checkpoint.find(folder / "checkpoints")[-1])
    return digests(
        {"step": opened.step, **{part: opened.tensors(part) for part in ("model", "ema", "optimizer")}}
    )


def _reported(folder: Path) -> Value:
    from scaledit.report import run

    run.write(folder, "cpu")
    return {}


def _logged(folder: Path) -> Value:
    """The log, read and rewound as a resumed run does."""
    from scaledit.training import log
    from scaledit.training.events import Started

    before = log.read(folder)
    log.JsonLog(folder)(Started("x", 2, 6, "cpu", 1, 1, 1, 1))
    return digests({"events": before, "rewound": log.read(folder)})


def _same_config(folder: Path) -> Value:
    """The config, compared as a resumed run does."""
    from scaledit.config import RunConfig
    from scaledit.training.folder import lock

    run = RunConfig.from_json(json.loads((folder.parent / "shared-run/run/config.json").read_bytes()))
    lock, _ = lock(run, folder, "auto")
    lock.release()
    return {}


# Weights of other programs


def _official(folder: Path) -> None:
    state = official_state(random_dit(config()))
    torch.save(state, folder / "bare.pt")
    import argparse

    trained = {
        "model": state,
        "ema": {k: v.half() for k, v in state.items()},
        "opt": {"state": {}, "lr": [1e-4]},
    }
    torch.save({**trained, "args": argparse.Namespace(model="x", image_size=64)}, folder / "trained.pt")


def _official_safetensors(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(official_state(random_dit(config())), folder / "bare.safetensors")


def _diffusers(folder: Path) -> None:
    torch.save(official_state(random_dit(config(num_classes=1000))), folder / "in.pt")
    for name, more in (("one", ()), ("shards", ("--max-shard-size", "20KB"))):
        convert(folder / "in.pt", folder / name, "--to", "diffusers", "--heads", HEADS, *more)
    (folder / "in.pt").unlink()


def _exported(folder: Path) -> None:
    torch.save(official_state(random_dit(config())), folder / "in.pt")
    convert(folder / "in.pt", folder / "model", "--to", "scaledit", "--heads", HEADS)
    (folder / "in.pt").unlink()


def _opened(path: Path) -> dict[str, Any]:
    from scaledit.interop.convert import open_model
    from scaledit.interop.infer import Hints

    model = open_model(path, Hints(heads=HEADS))
    return {"config": model.config, **{key: lazy.read() for key, lazy in model.weights.items()}}


def _models(folder: Path) -> Value:
    return digests(
        {f"{path.name} {key}": one for path in folder.iterdir() for key, one in _opened(path).items()}
    )


def _vae(folder: Path) -> None:
    from scaledit.autoencoders.config import AutoencoderConfig
    from scaledit.training.autoencoder_state import build

    net = build(AutoencoderConfig(widths=(8, 8, 8)), 32, seed=0)
    net.register_to_config(scaling_factor=0.7)
    net.save_pretrained(folder / "vae")


def _decoding(folder: Path) -> Value:
    from scaledit.autoencoders import open_autoencoder

    with _quiet():
        opened = open_autoencoder(str(folder / "vae"))
        pixels = opened.decode(torch.zeros(1, opened.channels, 4, 4))
        return digests({"moments": opened.encode(torch.zeros(1, 3, 16, 16)), "pixels": pixels})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Libraries' warnings; RuntimeErrors of torch that they announce are errors still."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _program(folder: Path) -> None:
    from scaledit.interop import program

    program.save(random_dit(config(depth=1)), folder / "dit.pt2")


def _run_program(folder: Path) -> Value:
    from scaledit.interop import program

    with _quiet():
        net = program.load(folder / "dit.pt2", trusted=True)
        y = torch.zeros(2, dtype=torch.int64)
        return digests(
            {"config": net.config, "out": net(torch.zeros(2, *net.config.shape), torch.zeros(2), y)}
        )


# Evaluation


def _samples_npz(folder: Path) -> None:
    images = np.stack([pictures.picture(i, 16, 16) for i in range(6)])
    origin = np.array(json.dumps({"seed": 3, "n": 6}))
    np.savez(folder / "stored.npz", arr_0=images, arr_1=np.arange(6) % 3, origin=origin)
    np.savez_compressed(folder / "compressed.npz", images, np.arange(6) % 3)
    for path in folder.iterdir():
        still_zip(path)


def _samples(path: Path) -> dict[str, Any]:
    from scaledit.evaluation.samples import open_samples

    opened = open_samples(path)
    batches = list(opened.batches())
    labels = [batch.labels for batch in batches]
    return {
        "images": np.concatenate([batch.images for batch in batches]),
        "labels": labels,
        "origin": dict(opened.origin),
    }


def _all_samples(folder: Path) -> Value:
    return digests({f"{p.name} {k}": v for p in sorted(folder.iterdir()) for k, v in _samples(p).items()})


def _sample_folder(folder: Path) -> None:
    from scaledit import images

    for i in range(5):
        images.save_png(folder / "set" / f"{i}.png", pictures.picture(i, 16, 16), {"seed": 1, "class": i % 2})


def _sample_tars(folder: Path) -> None:
    _sample_folder(folder)
    for name, mode in (("set.tar", "w"), ("set.tar.gz", "w:gz")):
        with tarfile.open(folder / name, mode) as archive:  # type: ignore[call-overload]
            archive.add(folder / "set", arcname="set")
        still_tar(folder / name)
    shutil.rmtree(folder / "set")


def _images_of_tars(folder: Path) -> Value:
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        found |= {f"{path.name} {digest(image)}": "" for image in _samples(path)["images"]}
    return found


def _reference(folder: Path) -> None:
    from scaledit.data.sets import digits
    from scaledit.evaluation import digits as judged
    from scaledit.evaluation.reference import write_reference

    write_reference(folder / "ref.npz", _real(digits().images[:100]), judged.trained(), "digits")
    with np.load(folder / "ref.npz") as held:
        images = _real(digits().images[:100]).images
        np.savez_compressed(folder / "adm.npz", mu=held["mu"], sigma=held["sigma"], arr_0=images)
    still_zip(folder / "adm.npz")


def _real(images: torch.Tensor) -> Any:
    from scaledit.evaluation.samples import InMemory

    gray = (images * 127.5 + 127.5).round().to(torch.uint8)
    return InMemory("digits", gray.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy(), None, {})


def _judged_by(folder: Path) -> Value:
    """A distance to each reference, and what else it is asked for."""
    from scaledit.data.sets import digits
    from scaledit.evaluation.extractors.digits import DigitsClassifier
    from scaledit.evaluation.features import extract
    from scaledit.evaluation.judge import Judge, View, check_reference
    from scaledit.evaluation.metrics.frechet import FrechetDistance
    from scaledit.evaluation.metrics.neighbors import ImprovedPrecision, ImprovedRecall
    from scaledit.evaluation.reference import open_reference

    extractor = DigitsClassifier()
    network, wanted = extractor.load(), (FrechetDistance(), ImprovedPrecision(), ImprovedRecall())
    seen = extract(_real(digits(held_out=True).images[:80]), [network])
    found: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        reference = open_reference(path, network, needs_images=True)
        view = View(extractor, network, reference, wanted)
        check_reference(view)
        figures = Judge((view,)).compute_metrics(seen)
        if not all(np.isfinite(list(figures.values()))):
            raise AssertionError(f"figures {figures}")
        found[path.name] = [figures, reference.n, reference.statistics]
    return digests(found)


def _results(folder: Path) -> None:
    from scaledit.evaluation.result import MetricValue, Result

    figures = {
        "fd_digits": MetricValue(6.52, 0.99, 1.2),
        "class_accuracy": MetricValue(0.9),
        "precision": MetricValue(0.8, 0.0),
    }
    protocol = {"n": 100, "image_size": [8, 8], "seed": [1, 2], "sampler": "ddpm", "decoder": None}
    for name in ("a", "b"):
        result = Result(name, figures, protocol, ["100 samples are few"])
        (folder / f"{name}.json").write_text(json.dumps(result.to_json(), indent=1))


def _compared(folder: Path) -> Value:
    """As the command line does it: `evaluate --compare`."""
    _command("evaluate", "--compare", *sorted(map(str, folder.iterdir())))
    return {}


def _command(*words: str) -> None:
    """A command as `scaledit.cli` runs it, without turning its errors into exit codes."""
    from scaledit import cli

    cli._dispatch(list(words))


def _small_weights(folder: Path) -> None:
    from safetensors.torch import save_file

    state = {
        f"layer{i}.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(i)) for i in range(4)
    }
    torch.save(state, folder / "w.pth")
    save_file(state, folder / "w.safetensors")


def _inception(folder: Path) -> Value:
    """The tensors of a file of weights. (That they are Inception's is checked by their shapes.)"""
    from scaledit.evaluation import inception

    return digests({path.name: inception._read(path) for path in sorted(folder.iterdir())})


def _shipped(folder: Path) -> None:
    from importlib.resources import files

    for name in ("digits.safetensors", "photos.safetensors"):
        (folder / name).write_bytes(files("scaledit.evaluation").joinpath(name).read_bytes())


def _shipped_weights(folder: Path) -> Value:
    from scaledit.evaluation import digits, photos, small

    small.files = lambda package: folder  # type: ignore[assignment]
    networks = (
        (digits.DigitClassifier(), digits.WEIGHTS, digits.SHA256),
        (photos.PhotoClassifier(), photos.WEIGHTS, photos.SHA256),
    )
    for network, file, sha256 in networks:
        small.load_shipped(network, file, sha256)
    return digests({file: network.state_dict() for network, file, _ in networks})


def _dino(folder: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    small = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=224)
    Dinov2Model(small).save_pretrained(folder / "dino")


def _dino_features(folder: Path) -> Value:
    from scaledit.evaluation import dinov2

    extractor = dinov2.load(str(folder / "dino"))
    return digests({"pool": extractor(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))["pool"]})


def _generate(folder: Path) -> Any:
    import scaledit
    from scaledit.sampling import generate
    from scaledit.sampling.request import Request

    pipeline = scaledit.load(folder.parent / "shared-run/run", device="cpu")
    generate.PART = 4
    request = Request(classes=tuple(range(10)), settings=pipeline.settings(seed=1, steps=2), num=10)
    return generate.generate(pipeline, request, folder / "set")


def _generated(folder: Path) -> None:
    shared(folder, "run", _train)
    _generate(folder)


def _goes_on_generating(folder: Path) -> Value:
    _generate(folder)
    return _all_samples(folder)


# Recipes, studies


def _recipe(folder: Path) -> None:
    from scaledit.config import RECIPES

    for name in ("digits", "imagenet256-xl2"):
        text = (RECIPES / f"{name}.toml").read_text()
        (folder / f"{name}.toml").write_text(text)
    (folder / "mine.toml").write_text(
        'extends = "./digits.toml"\nname = "mine"\n[model]\npatch_size = 4\n[train]\nsteps = 10\nseed = 1\n'
        '[optimizer]\nbetas = [0.9, 0.99]\n[data]\nname = "digits"\n[engine]\ntimeout = 60.5\n'
        '[evaluate]\nreference = "digits"\n[log]\ntensorboard = true\n'
    )


def _recipes(folder: Path) -> Value:
    from scaledit import config as configs

    found = {path.name: configs.load(str(path)) for path in sorted(folder.iterdir())}
    for one in found.values():
        assert configs.RunConfig.from_json(one.to_json()) == one
    return digests(found)


def _planned(folder: Path) -> Value:
    """As the command line does it."""
    for path in sorted(folder.iterdir()):
        _command("plan", str(path), "--iterations-per-second", "5")
    return {}


def _autoencoder_recipe(folder: Path) -> None:
    from scaledit.config import RECIPES

    (folder / "ae.toml").write_text((RECIPES / "photos-ae.toml").read_text())


def _autoencoder_recipes(folder: Path) -> Value:
    from scaledit import config as configs
    from scaledit.autoencoders.config import AutoencoderRun

    return digests({"ae": configs.load(str(folder / "ae.toml"), kind=AutoencoderRun)})


OVERRIDES = """train.steps = 100
model.patch_size = 4
optimizer.betas = [0.9, 0.99]
data.name = "digits"
log.wandb = "me/mine"
sample.cfg_scale = 1.5
ema.warmup = true
"""


def _overridden(folder: Path) -> Value:
    """Lines as words of the command line."""
    from scaledit import config as configs

    text = (folder / "overrides.txt").read_bytes().decode("utf-8", "surrogateescape")
    words = [word.replace(" = ", "=", 1) for word in text.split("\n") if word]
    return digests({"config": configs.load("digits", words)})


def _study_toml(folder: Path) -> None:
    from test_study import TOML as text

    (folder / "base.toml").write_text(text)
    (folder / "mine.toml").write_text(
        'extends = "BASE"\ntitle = "mine"\n[common]\ntrain.seed = 3\n[[measure]]\nwhere.size = ["S", "B"]\n'
        'evaluate.seeds = 2\n[[measure]]\npart = "sampling"\nsample.steps = [4, 8]\n'
    )


def _study(folder: Path) -> Value:
    from scaledit.scaling import study

    mine = folder / "mine.toml"
    if mine.is_file():  # a study names the one it extends by its path
        mine.write_bytes(mine.read_bytes().replace(b"BASE", str(folder / "base.toml").encode()))
    found = {name: study.load(str(folder / name)) for name in ("base.toml", "mine.toml")}
    return digests({name: [run.name for run in one.runs] for name, one in found.items()})


def _study_folder(folder: Path) -> None:
    from made_tables import study
    from scaledit.scaling import table as tables

    whole = study()
    rows = [row for row in whole.rows if row.part != "training" or row.steps in (500, 3000)]
    losses = [loss for loss in whole.losses if loss.steps % 400 == 0]
    about = dataclasses.replace(
        whole.about,
        protocols={"final": {"n": 100, "decoder": None}},
        configs={"S/1": {"model": {"depth": 2}}},
    )
    pictures = dict(list(whole.pictures.items())[:1])
    tables.write(tables.Table(about, tuple(rows), tuple(losses), pictures), folder)


def _study_read(folder: Path) -> Value:
    from scaledit.scaling import table as tables

    table = tables.read(folder)
    tables.to_sqlite(table, folder / "table.sqlite")
    tables.write(table, folder / "again")
    assert tables.read(folder / "again").rows == table.rows
    return digests({"rows": table.rows, "losses": table.losses})


def _study_found(folder: Path) -> Value:
    """The content of the report except the figures: fits, verdicts, the page."""
    from scaledit.report import study as report
    from scaledit.scaling import table as tables

    report.figures = lambda table, found, progress: {}  # type: ignore[assignment]
    with _quiet():
        report.write(tables.read(folder), folder)
    return {}


def _study_drawn(folder: Path) -> Value:
    """The whole report."""
    from scaledit.report import study as report
    from scaledit.scaling import table as tables

    report.DPI = 20
    with _quiet():
        report.write(tables.read(folder), folder)
    return {}


QUEUED = """
title = "tiny"
recipe = "digits-paper"
[sizes.S]
depth = 1
hidden_size = 16
num_heads = 2
[common]
train.steps = 30
train.batch_size = 16
evaluate.every = 15
evaluate.num = 40
evaluate.seeds = 1
[[runs]]
size = "S"
model.patch_size = [4, 8]
[[measure]]
evaluate.seeds = 2
"""


def _queued(folder: Path) -> None:
    from scaledit.scaling.queue import Queue

    (folder / "tiny.toml").write_text(QUEUED)
    (folder / "out/results").mkdir(parents=True)
    _, jobs = _jobs(folder)
    queue = Queue(folder / "out", jobs)
    look = {
        "step": 15,
        "name": "x",
        "fd_digits": 9.5,
        "fd_digits_real": 1.5,
        "class_accuracy": 0.5,
        "protocol": {"n": 40, "sampler": "ddpm", "decoder": None, "reference": "digits"},
        "warnings": ["few"],
    }
    for job in jobs:
        if job.needs:
            queue.finish(job, {**look, "step": 30, "seconds": 2.5})
            continue
        looks = [look, {**look, "step": 30}]
        curve = {"losses": [[1, 0.9], [30, 0.25]], "loss_at": {"15": 0.5, "30": 0.25}}
        queue.finish(job, {"evaluations": looks, **curve, "skipped": 0, "pictures": None, "seconds": 3.5})
        (folder / "out/queue").mkdir(exist_ok=True)
        queue.report_progress(job, 0.5)
    (folder / "out/journal.jsonl").unlink()


def _jobs(folder: Path) -> Any:
    from scaledit.scaling import study as studies
    from scaledit.scaling.work import jobs

    study = studies.load(str(folder / "tiny.toml"))
    return study, jobs(study)


def _collected(folder: Path) -> Value:
    from scaledit.scaling.collect import collect
    from scaledit.scaling.queue import Queue
    from scaledit.scaling.table import to_csv

    study, jobs = _jobs(folder)
    queue = Queue(folder / "out", jobs)
    shares = [queue.progress(job.key) for job in jobs]
    if not all(0 <= share <= 1 for share in shares):
        raise AssertionError(f"shares {shares}")
    table, missing = collect(study, queue, "scaledit study tiny")
    return digests(
        {"rows": to_csv(table.rows), "losses": table.losses, "missing": [job.key for job in missing]}
    )


READERS: dict[str, Reader] = {
    "images PNG": Reader(_pngs, {"class/*.png": PNG}, _decoded, 400),
    "images JPEG": Reader(_jpegs, {"class/*": BYTES}, _decoded, 200, same="none"),
    "images WebP": Reader(
        lambda at: _saved(at, ".webp", ("RGB", "RGBA")), {"class/*": BYTES}, _decoded, 150, same="none"
    ),
    "images BMP": Reader(
        lambda at: _saved(at, ".bmp", ("RGB", "L", "P", "1")), {"class/*": BYTES}, _decoded, 150, same="none"
    ),
    "images GIF": Reader(
        lambda at: _saved(at, ".gif", ("P", "L")), {"class/*": BYTES}, _decoded, 100, same="none"
    ),
    "images TIFF": Reader(_tiffs, {"class/*": BYTES}, _decoded, 250, same="none"),
    "a zip of images": Reader(_zip, {"set.zip": PICTURES}, _entries, 250, same="each"),
    "a tar of class folders": Reader(_tar, {"set.tar": BYTES}, _entries, 150, same="none"),
    "tar shards": Reader(_shards, {"set/*.tar": BYTES}, _entries, 150, same="none"),
    "a tar with JSON labels": Reader(_labelled_json, {"set.tar": BYTES}, _entries, 150, same="none"),
    "classes.txt of tar shards": Reader(
        _shards,
        {"set/classes.txt": TEXT},
        _entries,
        80,
        same="none",
    ),
    "Parquet": Reader(
        lambda at: pictures.parquet(at / "set"), {"set/data/*.parquet": BYTES}, _entries, 150, same="none"
    ),
    "Arrow": Reader(
        lambda at: pictures.arrow(at / "set"), {"set/*.arrow": BYTES}, _entries, 150, same="none"
    ),
    "class folders": Reader(_odd_names, {"set/*/*": PNG}, _decoded_set, 60, same="none"),
    "a latent cache": Reader(_cache, {"index.json": JSON, "*.safetensors": SAFETENSORS}, _latents, 250),
    "a latent cache, index resealed": Reader(_cache, {"index.json": RESEALED}, _latents, 250),
    "a latent cache, shards resealed": Reader(
        _cache, {"*.safetensors": SAFETENSORS}, _latents_resealed, 120, same="none"
    ),
    "held-out images": Reader(
        _with_held_out, {"held-out.json": MAYBE_SEALED, "held-out.npz": BYTES}, _held_out, 200, same="none"
    ),
    "held-out images, resealed": Reader(
        _with_held_out, {"held-out.npz": NPZ}, _held_out_resealed, 120, same="none"
    ),
    "parts of scaledit encode": Reader(
        _half_encoded,
        {"out/request.json": JSON, "out/parts/*.json": MAYBE_SEALED, "out/*.safetensors": SAFETENSORS},
        _encoded(False),
        120,
    ),
    "scaledit encode --repair": Reader(
        _whole_cache,
        {"out/index.json": JSON, "out/parts/*.json": JSON, "out/*.safetensors": SAFETENSORS},
        _encoded(True),
        80,
    ),
    "a checkpoint": Reader(
        _checkpoint, {"*/manifest.json": JSON, "*/*.safetensors": SAFETENSORS}, _tensors, 200
    ),
    "a checkpoint, manifest resealed": Reader(
        _checkpoint, {"*/manifest.json": RESEALED}, _tensors_and_model, 200
    ),
    "a checkpoint, tensors resealed": Reader(
        _checkpoint, {"*/*.safetensors": SAFETENSORS}, _loaded_resealed, 120, same="none"
    ),
    "a run folder, loaded": Reader(
        _run,
        {
            "checkpoints/*4/manifest.json": JSON,
            "checkpoints/*4/*.safetensors": SAFETENSORS,
            "config.json": JSON,
            "status.json": JSON,
        },
        _loaded,
        100,
        same="none",
    ),
    "config.json of a run": Reader(_run, {"config.json": JSON}, _same_config, 200, same="none"),
    "log.jsonl of a run": Reader(_run, {"log.jsonl": JSON_LINES}, _logged, 250, same="none"),
    "a run folder, resumed": Reader(
        _run,
        {
            "config.json": JSON,
            "log.jsonl": JSON_LINES,
            "status.json": JSON,
            "checkpoints/*4/manifest.json": MAYBE_SEALED,
            "checkpoints/*4/*.safetensors": SAFETENSORS,
        },
        _resumed,
        60,
    ),
    "a run folder, reported": Reader(
        _run, {"config.json": JSON, "log.jsonl": JSON_LINES, "samples/*": PNG}, _reported, 40, same="none"
    ),
    "an official .pt": Reader(_official, {"*.pt": PICKLED}, _models, 160),
    "an official .safetensors": Reader(_official_safetensors, {"*": SAFETENSORS}, _models, 200, same="none"),
    "folders of diffusers": Reader(
        _diffusers,
        {
            "*/transformer/*.json": JSON,
            "*/transformer/*.safetensors": SAFETENSORS,
            "*/scheduler/*.json": JSON,
            "*/*.json": JSON,
        },
        _models,
        200,
        same="none",
    ),
    "an exported folder": Reader(
        _exported,
        {"model/manifest.json": MAYBE_SEALED, "model/config.json": JSON, "model/*.safetensors": SAFETENSORS},
        lambda at: _loaded(at / "model"),
        120,
    ),
    "an autoencoder of diffusers": Reader(
        _vae, {"vae/config.json": JSON, "vae/*.safetensors": SAFETENSORS}, _decoding, 80, same="none"
    ),
    "an exported program": Reader(_program, {"dit.pt2": PROGRAM}, _run_program, 30, same="none"),
    "samples in .npz": Reader(_samples_npz, {"*.npz": NPZ}, _all_samples, 300),
    "samples in a folder": Reader(_sample_folder, {"set/*.png": PNG}, _all_samples, 120),
    "samples in a tar": Reader(_sample_tars, {"*": BYTES}, _images_of_tars, 150, same="each"),
    "a reference in .npz": Reader(_reference, {"*.npz": NPZ}, _judged_by, 200),
    "results, compared": Reader(_results, {"a.json": JSON}, _compared, 250, same="none"),
    "weights of Inception": Reader(
        _small_weights, {"*.pth": PICKLED, "*.safetensors": SAFETENSORS}, _inception, 120, same="none"
    ),
    "weights of the digits and photos": Reader(_shipped, {"*": BYTES}, _shipped_weights, 40),
    "a folder of DINOv2": Reader(
        _dino, {"dino/config.json": JSON, "dino/*.safetensors": SAFETENSORS}, _dino_features, 40, same="none"
    ),
    "generated parts": Reader(_generated, {"set/part-*.npz": NPZ}, _all_samples, 120),
    "request.json of generated parts": Reader(
        _generated, {"set/request.json": JSON}, _all_samples, 150, same="none"
    ),
    "scaledit generate, gone on with": Reader(
        _generated, {"set/request.json": JSON, "set/part-*.npz": NPZ}, _goes_on_generating, 40
    ),
    "recipes": Reader(_recipe, {"*.toml": TOML}, _recipes, 300, same="none"),
    "recipes, planned": Reader(_recipe, {"*.toml": TOML}, _planned, 150, same="none"),
    "recipes of autoencoders": Reader(
        _autoencoder_recipe, {"*.toml": TOML}, _autoencoder_recipes, 100, same="none"
    ),
    "overrides": Reader(
        lambda at: (at / "overrides.txt").write_text(OVERRIDES), {"*": TOML}, _overridden, 200, same="none"
    ),
    "declarations of studies": Reader(_study_toml, {"*.toml": TOML}, _study, 150, same="none"),
    "a study's folder": Reader(
        _study_folder, {"*.csv": CSV, "study.json": JSON, "pictures/*": PNG}, _study_read, 200, same="none"
    ),
    "a study's folder, judged": Reader(
        _study_folder, {"*.csv": CSV, "study.json": JSON}, _study_found, 80, same="none"
    ),
    "a study's folder, drawn": Reader(
        _study_folder, {"*.csv": CSV, "study.json": JSON}, _study_drawn, 4, same="none"
    ),
    "results of a study": Reader(
        _queued,
        {"out/results/*.json": JSON, "out/queue/*.json": JSON},
        _collected,
        200,
        same="none",
    ),
}
