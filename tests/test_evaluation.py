"""Evaluation of sample sets: inputs, results, and the refusal of anything that would falsify them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from oracle import formulas
from scaledit import part as parts
from scaledit.cli import main
from scaledit.config import EvaluateConfig
from scaledit.errors import UsageError
from scaledit.evaluation import dinov2, inception, metrics
from scaledit.evaluation.extractors import Extractor
from scaledit.evaluation.features import extract
from scaledit.evaluation.judge import open_judge
from scaledit.evaluation.reference import open_reference
from scaledit.evaluation.result import Result, side_by_side
from scaledit.evaluation.samples import open_samples
from scaledit.scaling import paper
from scaledit.training.log import read
from tiny import TINY

PICTURES = formulas.images("evaluated", 12, 64)
LABELS = np.arange(12) % 3


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of Inception weights in the known file's layout: a bare state dict under torchvision's names."""
    path = tmp_path_factory.mktemp("weights") / inception.FILE_NAME
    state = inception.Inception().state_dict()
    filled = {k: torch.from_numpy(formulas.inception_weight(k, tuple(v.shape))) for k, v in state.items()}
    torch.save(filled, path)
    return path


def png(image: np.ndarray, kind: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind, **options)
    return buffer.getvalue()


def folder(path: Path, images: np.ndarray = PICTURES) -> Path:
    path.mkdir()
    for i, image in enumerate(images):
        (path / f"{i:04d}.png").write_bytes(png(image))
    return path


def tar(path: Path, images: np.ndarray = PICTURES) -> Path:
    with tarfile.open(path, "w") as archive:
        for i, image in enumerate(images):
            entry = tarfile.TarInfo(f"some/{i:04d}.png")
            data = png(image)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def npz(path: Path, images: np.ndarray = PICTURES, **more: np.ndarray) -> Path:
    np.savez(path, arr_0=images, **more)
    return path


# Sample sets


def test_npz_folder_and_tar_hold_the_same_images(tmp_path: Path):
    sets = [npz(tmp_path / "a.npz"), folder(tmp_path / "b"), tar(tmp_path / "c.tar")]
    np.savez_compressed(tmp_path / "d.npz", PICTURES, LABELS)  # ADM's own way to write it
    for path in (*sets, tmp_path / "d.npz"):
        samples = open_samples(path)
        read = np.concatenate([batch.images for batch in samples.batches()])
        assert samples.n == len(PICTURES)
        np.testing.assert_array_equal(read, PICTURES)
    labels = [batch.labels for batch in open_samples(tmp_path / "d.npz").batches()]
    np.testing.assert_array_equal(np.concatenate(labels), LABELS)


def test_gray_images_are_read_as_gray(tmp_path: Path):
    gray = PICTURES[..., 0]
    [batch] = open_samples(folder(tmp_path / "gray", gray)).batches()
    np.testing.assert_array_equal(batch.images, gray[..., None].repeat(3, axis=-1))


def bad_sets(at: Path) -> dict[str, Path]:
    """Sample sets that must be refused, by a part of the message."""
    at.mkdir()
    torn = (npz(at / "whole.npz").read_bytes())[:-4000]
    (at / "torn.npz").write_bytes(torn)
    flipped = bytearray((at / "whole.npz").read_bytes())
    flipped[9000] ^= 1
    (at / "flipped.npz").write_bytes(flipped)
    np.savez(at / "no.npz", mu=np.zeros(3))
    np.savez(at / "objects.npz", arr_0=np.array([{}, {}], dtype=object))
    (at / "text.npz").write_text("not an archive")
    (at / "text.tar").write_text("not an archive")
    whole = tar(at / "whole.tar").read_bytes()
    (at / "torn.tar").write_bytes(whole[: len(whole) // 2])
    (at / "empty").mkdir()
    mixed = folder(at / "mixed")
    (mixed / "0007.png").write_bytes(png(PICTURES[0][:32]))
    lossy = folder(at / "lossy")
    (lossy / "0007.jpg").write_bytes(png(PICTURES[0], "jpeg"))
    renamed = folder(at / "renamed")
    (renamed / "0007.png").write_bytes(png(PICTURES[0], "jpeg"))
    broken = folder(at / "broken")
    (broken / "0007.png").write_bytes(png(PICTURES[0])[:-300])
    alpha = folder(at / "alpha")
    (alpha / "0007.png").write_bytes(png(np.zeros((64, 64, 4), np.uint8)))
    bomb = folder(at / "bomb")
    (bomb / "0007.png").write_bytes(png(np.zeros((20000, 20000), np.uint8)))
    return {
        "channels first": npz(at / "nchw.npz", PICTURES.transpose(0, 3, 1, 2)),
        "float32; a batch is uint8": npz(at / "float.npz", PICTURES.astype(np.float32) / 255),
        r"\(N, H, W, 3\)": npz(at / "flat.npz", PICTURES[..., 0]),
        "Fortran order": npz(at / "fortran.npz", np.asfortranarray(PICTURES)),
        "has 1 image": npz(at / "one.npz", PICTURES[:1]),
        "only the values 0 and 1": npz(at / "bits.npz", PICTURES // 200),
        "no images": at / "no.npz",
        "Python objects": at / "objects.npz",
        "arr_1 must be 12 whole numbers": npz(at / "labels.npz", arr_1=np.zeros(5)),
        "is not an .npz file": at / "text.npz",
        "truncated|is not an .npz": at / "torn.npz",
        "flipped.npz is corrupt": at / "flipped.npz",
        "not a tar archive": at / "text.tar",
        "is corrupt": at / "torn.tar",
        "no PNG images": at / "empty",
        "0007.png has 64x32 pixels, but earlier images have 64x64": mixed,
        "lossy compression .* --allow-jpeg": lossy,
        "0007.png cannot be read as a PNG": renamed,
        "0007.png cannot be read": broken,
        "mode RGBA": alpha,
        "0007.png .*(declares|exceeds)": bomb,
    }


def test_bad_sample_sets_are_refused_with_the_reason(tmp_path: Path):
    class Gray:
        name, sha256, resize = "gray", "none", "none"

        def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"pool": images.float().mean(dim=(2, 3))}

    for message, path in bad_sets(tmp_path / "bad").items():
        with pytest.raises(UsageError, match=message):
            extract(open_samples(path), [Gray()])


def test_jpeg_is_read_if_it_is_allowed_and_reported(tmp_path: Path, weights: Path, capsys):
    path = folder(tmp_path / "lossy")
    (path / "0007.png").unlink()
    (path / "0007.jpg").write_bytes(png(PICTURES[7], "jpeg", quality=90))
    arguments = ["evaluate", str(path), "--reference", str(npz(tmp_path / "real.npz")), "--metrics", "fid"]
    arguments += ["--inception", str(weights), "--any-inception"]
    assert main(arguments) == 2
    assert "--allow-jpeg" in capsys.readouterr().err
    assert main([*arguments, "--allow-jpeg", "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["fid"] > 0  # one image of twelve went through a JPEG
    assert any("lossily" in warning for warning in result["warnings"])


# Weights


def test_weights_are_searched_for_and_never_downloaded(tmp_path: Path, weights: Path, monkeypatch):
    monkeypatch.delenv(inception.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(UsageError, match=rf"download {inception.SOURCE}.* to .*cache/scaledit/pt_inception"):
        inception.find_weights()
    cached = tmp_path / "torch" / "hub" / "checkpoints" / inception.FILE_NAME
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert inception.find_weights() == cached
    monkeypatch.setenv(inception.VARIABLE, str(weights))
    assert inception.find_weights() == weights
    with pytest.raises(UsageError, match=r"--inception is set to .*nowhere, which does not exist"):
        inception.find_weights(tmp_path / "nowhere")


def test_weights_of_another_hash_or_network_are_refused(tmp_path: Path, weights: Path):
    with pytest.raises(UsageError, match=r"SHA-256 .*6726825d.*--any-inception"):
        inception.load(weights)
    state = torch.load(weights, weights_only=True)
    wrong = {
        "fc.weight is nothing, but Inception": {k: v for k, v in state.items() if k != "fc.weight"},
        "extra is": {**state, "extra": torch.zeros(3)},
        r"fc.weight is \(1000, 2048\), but Inception has \(1008, 2048\)": {
            **state,
            "fc.weight": torch.zeros(1000, 2048),
        },
        "no state dict": [1, 2],
    }
    for message, content in wrong.items():
        torch.save(content, tmp_path / "wrong.pth")
        with pytest.raises(UsageError, match=message):
            inception.load(tmp_path / "wrong.pth", verify=False)
    (tmp_path / "torn.pth").write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UsageError, match="cannot be read as a file of tensors"):
        inception.load(tmp_path / "torn.pth", verify=False)


class Canary:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_file_of_a_user_is_unpickled(tmp_path: Path):
    canary = tmp_path / "canary"
    torch.save({"fc.weight": Canary(canary)}, tmp_path / "evil.pth")
    with pytest.raises(UsageError, match="cannot be read"):
        inception.load(tmp_path / "evil.pth", verify=False)
    np.savez(tmp_path / "evil.npz", arr_0=np.array([Canary(canary)] * 2, dtype=object))
    with pytest.raises(UsageError, match="never unpickled"):
        open_samples(tmp_path / "evil.npz")
    np.savez(tmp_path / "evil2.npz", mu=np.array([Canary(canary)] * 2, dtype=object), sigma=np.zeros(2))
    with pytest.raises(UsageError, match="never unpickled"):
        open_reference(tmp_path / "evil2.npz", inception.InceptionExtractor(inception.Inception(), ""), False)
    assert not canary.exists()


def test_weights_from_safetensors_make_the_same_features(tmp_path: Path, weights: Path):
    save_file(torch.load(weights, weights_only=True), tmp_path / "w.safetensors")
    images = torch.from_numpy(PICTURES[:2]).permute(0, 3, 1, 2)
    first, second = (inception.load(path, verify=False) for path in (weights, tmp_path / "w.safetensors"))
    assert torch.equal(first(images)["pool"], second(images)["pool"])


def test_weights_with_nan_are_reported(tmp_path: Path, weights: Path, capsys):
    state = torch.load(weights, weights_only=True)
    state["Mixed_7c.branch1x1.conv.weight"][:] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    arguments = ["evaluate", str(npz(tmp_path / "a.npz")), "--reference", str(npz(tmp_path / "b.npz"))]
    arguments += ["--inception", str(tmp_path / "nan.pth"), "--any-inception"]
    assert main([*arguments, "--json", str(tmp_path / "r.json")]) == 2
    assert "features of sample 0 are not finite (12 of 12 samples)" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()


# References and results


@pytest.mark.slow
def test_all_forms_of_a_reference_give_the_same_metrics(tmp_path: Path, weights: Path):
    """Statistics written by `scaledit reference`, ADM's own file, and the images themselves."""
    real = folder(tmp_path / "real", formulas.images("real", 10, 64))
    use = ["--inception", str(weights), "--any-inception"]
    assert main(["reference", str(real), "--out", str(tmp_path / "scaledit.npz"), *use]) == 0
    arrays = np.load(tmp_path / "scaledit.npz")
    statistics = {key: arrays[key] for key in ("mu", "sigma", "mu_s", "sigma_s")}
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(real.iterdir())])
    np.savez(tmp_path / "adm.npz", arr_0=images, **statistics)
    samples = npz(tmp_path / "samples.npz")
    results = []
    for reference in (real, tmp_path / "scaledit.npz", tmp_path / "adm.npz"):
        out = tmp_path / f"{reference.name}.json"
        command = ["evaluate", str(samples), "--reference", str(reference), *use, "--json", str(out)]
        assert main(command) == 0
        results.append(json.loads(out.read_text()))
    for other in results[1:]:
        for key in ("fid", "sfid", "inception_score", "precision", "recall", "density", "coverage", "kid"):
            assert other[key] == pytest.approx(results[0][key], rel=1e-6), key
    protocol = results[0]["protocol"]
    assert protocol["n"] == 12
    assert protocol["reference_n"] == 10
    assert protocol["extractor_sha256"] == inception.load(weights, verify=False).sha256
    assert len({result["protocol"]["reference_sha256"] for result in results}) == 3
    assert any("below 2049" in warning for warning in results[0]["warnings"])
    assert any("n 12, not 50000; labels unknown" in warning for warning in results[0]["warnings"])


def test_metrics_are_those_of_the_functions(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch):
    """And sFID's statistics are those of all spatial features, accumulated batch by batch."""
    monkeypatch.setattr("scaledit.evaluation.samples.BATCH", 7)
    extractor = inception.load(weights, verify=False)
    real, fake = (npz(tmp_path / f"{name}.npz", formulas.images(name, 20, 32)) for name in ("real", "made"))
    config = EvaluateConfig(reference=str(real), inception=str(weights), any_inception=True, seeds=1)
    values = open_judge(config).evaluate([open_samples(fake)]).metrics
    a, b = (
        extractor(torch.from_numpy(formulas.images(n, 20, 32)).permute(0, 3, 1, 2)) for n in ("real", "made")
    )
    pool_a, pool_b = a["pool"].numpy(), b["pool"].numpy()
    assert values["fid"].value == pytest.approx(metrics.frechet_distance(pool_a, pool_b), rel=1e-4)
    spatial = metrics.frechet_distance(a["spatial"].numpy(), b["spatial"].numpy())
    assert values["sfid"].value == pytest.approx(spatial, rel=1e-4)
    assert values["precision"].value == metrics.precision_recall(pool_a, pool_b).precision


def test_references_that_lack_something(tmp_path: Path, weights: Path, capsys):
    use = ["--inception", str(weights), "--any-inception"]
    samples, d = npz(tmp_path / "samples.npz"), 2048
    np.savez(tmp_path / "fid_only.npz", mu=np.zeros(d), sigma=np.eye(d))
    np.savez(tmp_path / "half.npz", mu=np.zeros(d))
    np.savez(tmp_path / "small.npz", mu=np.zeros(64), sigma=np.eye(64))
    np.savez(tmp_path / "nan.npz", mu=np.full(d, np.nan), sigma=np.eye(d))
    np.savez(tmp_path / "shapes.npz", mu=np.zeros(d), sigma=np.eye(5))
    origin = json.dumps({"extractor": "other", "extractor_sha256": "ab" * 32})
    np.savez(tmp_path / "other.npz", mu=np.zeros(d), sigma=np.eye(d), origin=np.array(origin))
    for name, message in {
        "fid_only": "has no mu_s and sigma_s, which sfid needs; choose --metrics fid,inception_score",
        "half": "has mu but no sigma",
        "small": "features of 64 and 2048 dimensions cannot be compared",
        "nan": "mu must be finite floating-point numbers",
        "shapes": "are not a mean and a covariance",
        "other": "was made with the extractor other",
        "nowhere": "there is no reference",
    }.items():
        reference = ["--reference", str(tmp_path / f"{name}.npz")]
        extra = ["--metrics", "fid"] if name == "small" else []
        assert main(["evaluate", str(samples), *reference, *use, *extra]) == 2
        assert message in capsys.readouterr().err
    reference = ["--reference", str(tmp_path / "fid_only.npz")]
    assert main(["evaluate", str(samples), *reference, *use, "--metrics", "fid,inception_score"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate"),
        (["SAMPLES"], "--reference is missing"),
        (["nowhere.npz", "--reference", "digits"], "nowhere.npz does not exist"),
        (["SAMPLES", "--reference", "digits", "--metrics", "fd_digit"], "did you mean 'fd_digits'"),
        (["SAMPLES", "--reference", "digits", "--seeds", "3"], "--seeds is for a run"),
        (["SAMPLES", "--reference", "digits", "--cfg-scale", "2"], "--cfg-scale is for a run"),
        (
            ["SAMPLES", "--reference", "digits"],
            "the digits' extractor needs images of 8x8 pixels, but these have 64x64",
        ),
        (["--compare", "SAMPLES"], "cannot be read as a result of scaledit evaluate --json"),
    ],
)
def test_wrong_calls(tmp_path: Path, arguments: list[str], message: str, capsys):
    samples = str(npz(tmp_path / "samples.npz"))
    assert main(["evaluate", *[samples if word == "SAMPLES" else word for word in arguments]]) == 2
    assert message in capsys.readouterr().err


def test_results_are_compared_with_each_other_and_the_paper(tmp_path: Path, capsys):
    protocol = {"n": 50_000, "image_size": [256, 256]}
    for name, fid in (("a", 9.5), ("b", 2.25)):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"name": name, "fid": fid, "precision": 0.5, "protocol": protocol, "warnings": []})
        )
    assert main(["evaluate", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    output = capsys.readouterr().out
    assert "9.5" in output
    assert "DiT-XL/2-G (cfg=1.50)" in output
    assert "2.27" in output  # the paper's
    header, rows = side_by_side([Result.read(tmp_path / "a.json"), *paper.quality((256, 256))])
    assert header[:2] == ["", "FID"]
    assert rows[0] == ["a", "9.5", "", "", "0.5", ""]


# Runs


def test_a_run_evaluates_itself_and_can_be_evaluated(tmp_path: Path):
    out = tmp_path / "run"
    few = ["evaluate.num=20", "evaluate.seeds=3", "evaluate.labels=equal"]
    shape = [*TINY, "train.steps=4", "checkpoint.every=4", "evaluate.every=2", *few]
    assert main(["train", "digits", "--out", str(out), *shape]) == 0
    events = [event for event in read(out) if event["event"] == "evaluated"]
    assert [event["step"] for event in events] == [2, 4]
    assert events[0]["fd_digits"] != events[1]["fd_digits"]
    report = (out / "report.html").read_text()
    for part in ("Evaluation in training", "real, held out", "FD-digits-random", "guidance 4.0", "recall"):
        assert part in report
    # The checkpoint, and the samples that generate writes, have the same metrics.
    assert main(["evaluate", str(out), "--reference", "digits", "--json", str(tmp_path / "r.json")]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    files = []
    for seed in (1, 2, 3):
        files.append(str(tmp_path / f"{seed}.npz"))
        drawing = ["--num", "20", "--labels", "equal", "--seed", str(seed), "--cfg-scale", "1"]
        assert main(["generate", str(out), *drawing, "--out", files[-1]]) == 0
    assert main(["evaluate", *files, "--reference", "digits", "--json", str(tmp_path / "f.json")]) == 0
    again = json.loads((tmp_path / "f.json").read_text())
    keys = ("fd_digits", "fd_digits_std", "fd_digits_real", "fd_digits_random", "class_accuracy", "recall")
    for key in keys:
        assert result[key] == pytest.approx(events[1][key], rel=1e-6)
        assert again[key] == pytest.approx(events[1][key], rel=1e-6)
    protocol = again["protocol"]
    assert protocol["sampler"] == {"name": "dpm", "steps": 4, "times": {"name": "even"}}  # of a flow
    assert (protocol["guidance"], protocol["seed"]) == ([], [1, 2, 3])
    assert protocol["labels"] == "equal"


def test_a_missing_reference_is_reported_before_the_first_step(tmp_path: Path, capsys):
    shape = [*TINY, "train.steps=4", "evaluate.every=2", "evaluate.reference=/nowhere.npz"]
    assert main(["train", "digits", "--out", str(tmp_path / "run"), *shape]) == 2
    assert "there is no reference /nowhere.npz" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("every", [0, 2])
def test_a_reference_for_images_of_another_size_is_refused_before_the_first_step(
    every: int, tmp_path: Path, capsys: pytest.CaptureFixture
):
    shape = [*TINY, "train.steps=4", f"evaluate.every={every}", "evaluate.reference=photos"]
    words = ["train", "digits", "--out", str(tmp_path / "run")]
    assert main([*words, *shape]) == 2
    refused = capsys.readouterr().err
    assert "evaluate.reference=photos evaluates only images of 64x64 pixels" in refused
    assert "this run generates images of 8x8;" in refused
    assert "turn evaluation off with evaluate.every=0 evaluate.reference=" in refused
    assert not (tmp_path / "run").exists()
    # The way out.
    assert main([*words, *shape, "train.steps=1", "evaluate.every=0", "evaluate.reference="]) == 0


def test_sides_of_extractors_are_those_of_their_networks():
    for name in ("digits", "digits-random", "photos", "photos-random"):
        extractor = parts.find(Extractor, name)()
        side = extractor.side
        assert side is not None
        network = extractor.load()
        network(torch.zeros(2, 3, side, side, dtype=torch.uint8))
        with pytest.raises(UsageError, match=f"needs images of {side}x{side} pixels"):
            network(torch.zeros(2, 3, side + 1, side, dtype=torch.uint8))


# DINOv2


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of the architecture, with random weights."""
    from transformers import Dinov2Config, Dinov2Model

    path = tmp_path_factory.mktemp("dino") / "tiny"
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=224)
    Dinov2Model(config).save_pretrained(path)
    return path


def test_fd_dinov2_of_a_local_model(tmp_path: Path, dino: Path):
    command = ["evaluate", str(npz(tmp_path / "a.npz")), "--dinov2", str(dino)]
    command += ["--reference", str(npz(tmp_path / "b.npz", formulas.images("real", 9, 64)))]
    assert main([*command, "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert "fid" not in result
    extractor = dinov2.load(str(dino))
    a, b = (
        extractor(torch.from_numpy(x).permute(0, 3, 1, 2))["pool"].numpy()
        for x in (PICTURES, formulas.images("real", 9, 64))
    )
    assert a.shape == (12, 24)
    assert result["fd_dinov2"] == pytest.approx(metrics.frechet_distance(b, a), rel=1e-5)
    assert result["protocol"]["extractor_sha256"] == extractor.sha256


def test_other_folders_are_refused_as_dinov2(tmp_path: Path):
    with pytest.raises(UsageError, match=r"it must have config.json and model.safetensors"):
        dinov2.load(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match="contains a model of the type bert"):
        dinov2.load(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(UsageError, match="cannot be read as a DINOv2"):
        dinov2.load(str(tmp_path))
