"""Decoding by kinds: every mode's exact 8-bit values or its refusal, transparency, shapes, memory, damage.

Files are built byte by byte where Pillow cannot write them.
"""

from __future__ import annotations

import io
import json
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from pictures import encoded, picture, tree
from scaledit.cli import main
from scaledit.data.background import background_color
from scaledit.data.decode import EXTREME, BadImage, crop, decode, header
from scaledit.data.files import ImageFiles
from scaledit.data.latents import Latents
from scaledit.data.sources import open_source
from scaledit.errors import UsageError, counted
from scaledit.evaluation.samples import open_samples
from scaledit.training.dit import train
from scaledit.training.events import Stepped
from tiny import tiny

WHITE = (255, 255, 255)
RAMP = np.arange(0, 65536, 17, dtype=np.uint16)[:3840].reshape(60, 64)
SCALED = np.round(RAMP / 257).astype(np.uint8)
GRAY, COLOR, PALETTE, GRAY_ALPHA, COLOR_ALPHA = 0, 2, 3, 4, 6
"""PNG's color types."""
CHANNELS = {GRAY: 1, COLOR: 3, PALETTE: 1, GRAY_ALPHA: 2, COLOR_ALPHA: 4}


def png(values: np.ndarray, bits: int, color: int, **chunks: bytes) -> bytes:
    """A PNG of (H, W) or (H, W, C) whole numbers; chunks (PLTE, tRNS) between header and pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    h, w = values.shape[:2]
    flat = values.reshape(h, w * CHANNELS[color])
    if bits < 8:
        ones = (flat[..., None] >> np.arange(bits)[::-1]) & 1
        rows = np.packbits(ones.reshape(h, -1).astype(np.uint8), axis=1)
    else:
        rows = flat.astype(">u2" if bits == 16 else np.uint8)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, bits, color, 0, 0, 0))
        + b"".join(chunk(kind.encode(), data) for kind, data in chunks.items())
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def tiff(
    data: bytes,
    width: int,
    height: int,
    bits: list[int],
    photometric: int,
    order: str = "<",
    **more: list[int],
) -> bytes:
    """An uncompressed TIFF of one strip. more: sample_format, extra, colormap."""
    tags = {
        256: [width],
        257: [height],
        258: bits,
        259: [1],
        262: [photometric],
        277: [len(bits)],
        278: [height],
    }
    tags |= {{"sample_format": 339, "extra": 338, "colormap": 320}[key]: value for key, value in more.items()}
    tags |= {273: [0], 279: [len(data)]}
    at = 8 + 2 + 12 * len(tags) + 4
    entries, behind = b"", b""
    where = at + sum(2 * len(v) for v in tags.values() if len(v) > 2)
    for tag, values in sorted(tags.items()):
        if tag in (273, 279):
            entries += struct.pack(order + "HHII", tag, 4, 1, where if tag == 273 else len(data))
        elif len(values) > 2:
            entries += struct.pack(order + "HHII", tag, 3, len(values), at + len(behind))
            behind += struct.pack(order + f"{len(values)}H", *values)
        else:
            packed = struct.pack(order + f"{len(values)}H", *values).ljust(4, b"\0")
            entries += struct.pack(order + "HHI", tag, 3, len(values)) + packed
    begin = b"II*\0" if order == "<" else b"MM\0*"
    count = struct.pack(order + "H", len(tags))
    return begin + struct.pack(order + "I", 8) + count + entries + bytes(4) + behind + data


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes, background: str = "white") -> np.ndarray:
    return np.asarray(decode(data, "x", background_color(background)))


def over(colors: np.ndarray, alpha: np.ndarray, background: tuple[int, ...] = WHITE) -> np.ndarray:
    """The formula of scaledit.data.background, in float64."""
    alpha = alpha[..., None].astype(float)
    return np.round((alpha * colors + (255 - alpha) * np.array(background)) / 255).astype(np.uint8)


# More than 8 bits

SIXTEEN = {
    "png": lambda: png(RAMP, 16, GRAY),
    "png by Pillow": lambda: saved(Image.fromarray(RAMP), "PNG"),
    "tiff little-endian": lambda: tiff(RAMP.astype("<u2").tobytes(), 64, 60, [16], 1),
    "tiff big-endian": lambda: tiff(RAMP.astype(">u2").tobytes(), 64, 60, [16], 1, ">"),
    "tiff lzw": lambda: saved(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw"),
    "tiff, white is 0": lambda: tiff((65535 - RAMP).astype("<u2").tobytes(), 64, 60, [16], 0),
}


@pytest.mark.parametrize("kind", SIXTEEN)
def test_gray_of_16_bits_is_scaled_by_its_range(kind: str):
    data = SIXTEEN[kind]()
    assert header(data, "x").bits == 16
    np.testing.assert_array_equal(decoded(data), np.repeat(SCALED[..., None], 3, -1))


def test_gray_of_12_bits_is_scaled_by_its_range():
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    data = tiff(packed.astype(np.uint8).tobytes(), 64, 64, [12], 1)
    np.testing.assert_array_equal(decoded(data)[..., 0], np.round(values / 4095 * 255))


COLOR_16 = np.stack([RAMP, RAMP[::-1], RAMP // 2], -1)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(COLOR_16, 16, COLOR), COLOR_16 >> 8),
        (tiff(COLOR_16.astype("<u2").tobytes(), 64, 60, [16] * 3, 2), COLOR_16 >> 8),
        (tiff(COLOR_16.astype(">u2").tobytes(), 64, 60, [16] * 3, 2, ">"), COLOR_16 >> 8),
    ],
    ids=["png", "tiff little-endian", "tiff big-endian"],
)
def test_of_color_of_16_bits_the_upper_byte_is_used(data: bytes, expected: np.ndarray):
    """At most one level from v / 257."""
    assert header(data, "x").bits == 16
    np.testing.assert_array_equal(decoded(data), expected)
    assert np.abs(expected - COLOR_16 / 257).max() < 1


def test_alpha_of_16_bits():
    values = np.stack([RAMP, RAMP[::-1]], -1)
    gray, alpha = values[..., 0] >> 8, values[..., 1] >> 8
    expected = over(np.repeat(gray[..., None], 3, -1), alpha)
    np.testing.assert_array_equal(decoded(png(values, 16, GRAY_ALPHA)), expected)
    with_alpha = np.concatenate([COLOR_16, RAMP[..., None]], -1)
    expected = over(COLOR_16 >> 8, RAMP >> 8)
    np.testing.assert_array_equal(decoded(png(with_alpha, 16, COLOR_ALPHA)), expected)
    data = tiff(with_alpha.astype("<u2").tobytes(), 64, 60, [16] * 4, 2, extra=[2])
    np.testing.assert_array_equal(decoded(data), expected)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "floats"),
        (saved(Image.fromarray(np.zeros((4, 4), np.int32)), "TIFF"), "signed integers"),
        (tiff(bytes(64), 4, 4, [32], 1), "integers of 32 bits"),
        (tiff(bytes(32), 4, 4, [16], 1, sample_format=[2]), "signed integers"),
        (tiff(bytes(16), 4, 4, [8], 1, sample_format=[2]), "signed integers"),
        (tiff(bytes(192), 4, 4, [32] * 3, 2, sample_format=[3] * 3), "TIFF of an unsupported kind"),
        (tiff(bytes(32), 4, 4, [16], 1, sample_format=[3]), "TIFF of an unsupported kind"),
    ],
    ids=["float", "int32", "uint32", "int16", "int8", "float rgb", "half"],
)
@pytest.mark.parametrize("look", [decode, header])
def test_without_a_known_white_it_is_refused_by_name(data: bytes, says: str, look):
    with pytest.raises(BadImage, match=rf"^x\.tif .*{says}.*; (scale|save) it"):
        look(data, "x.tif")


def test_a_transparent_color_of_16_bits_is_refused():
    """Pillow does not return its lower bytes."""
    with pytest.raises(BadImage, match="x has one transparent color of 16 bits per channel"):
        decode(png(COLOR_16, 16, COLOR, tRNS=bytes(6)), "x")


def test_the_ramp_through_inspect_encode_and_train(tmp_path: Path, capsys):
    """Folders of 16-bit gray give the same values in every command."""
    for i, name in enumerate(("a", "b")):
        (tmp_path / "tree" / name).mkdir(parents=True)
        (tmp_path / "tree" / name / "0.png").write_bytes(png(np.roll(RAMP, i)[:32, :32], 16, GRAY))
    assert main(["data", "inspect", str(tmp_path / "tree"), "--image-size", "32"]) == 0
    output = capsys.readouterr().out
    assert "2 images of gray with more than 8 bits: scaled to 8" in output
    assert "nothing would be refused" in output
    expected = SCALED[:32, :32] / 127.5 - 1
    x0 = ImageFiles(open_source(tmp_path / "tree"), 32).batch(np.array([0]), range(1), 0).x0
    np.testing.assert_allclose(x0[0, 1], expected, atol=1e-6)
    words = ["encode", str(tmp_path / "tree"), "--autoencoder", "pixels", "--image-size", "32"]
    assert main([*words, "--dtype", "float32", "--out", str(tmp_path / "latents")]) == 0
    moments = Latents.open(tmp_path / "latents", flip=False).moments([0], [False])
    np.testing.assert_allclose(moments[0, 1], expected, atol=1e-6)


@pytest.mark.parametrize("channels", [(1, 1), (3, 1), (4, 3)])
def test_an_autoencoder_of_other_than_rgb_images_is_refused(
    channels: tuple[int, int], tmp_path: Path, capsys
):
    from diffusers import AutoencoderKL

    net = AutoencoderKL(*channels, block_out_channels=(8,), norm_num_groups=4, latent_channels=3)
    net.save_pretrained(tmp_path / "ae")
    words = ["encode", str(tree(tmp_path / "tree")), "--autoencoder", str(tmp_path / "ae")]
    assert main([*words, "--image-size", "16", "--out", str(tmp_path / "latents")]) == 2
    message = f"ae encodes images of {counted(channels[0], 'channel')} and decodes to {channels[1]}; only"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "latents").exists()


def test_an_autoencoder_of_three_latent_channels_serves(tmp_path: Path):
    from diffusers import AutoencoderKL

    net = AutoencoderKL(3, 3, block_out_channels=(8,), norm_num_groups=4, latent_channels=3)
    net.save_pretrained(tmp_path / "ae")
    words = ["encode", str(tree(tmp_path / "tree")), "--autoencoder", str(tmp_path / "ae")]
    assert main([*words, "--image-size", "16", "--out", str(tmp_path / "latents")]) == 0
    assert Latents.open(tmp_path / "latents", flip=True).shape == (3, 16, 16)


# Other modes


def test_few_bits_palettes_and_other_colors():
    """'1', L of 2 and 4 bits, P, CMYK, YCbCr, LAB equal their formulas."""
    three = lambda gray: np.repeat(np.asarray(gray, np.uint8)[..., None], 3, -1)  # noqa: E731
    for bits in (1, 2, 4):
        values = np.arange(64).reshape(8, 8) % (1 << bits)
        np.testing.assert_array_equal(
            decoded(png(values, bits, GRAY)), three(values * 255 // ((1 << bits) - 1))
        )
        if bits > 1:
            np.testing.assert_array_equal(
                decoded(tiff(np.zeros((8, bits), np.uint8).tobytes(), 8, 8, [bits], 0)), 255
            )
    colors = np.random.default_rng(0).integers(0, 256, (16, 3), dtype=np.uint8)
    index = np.arange(16).reshape(4, 4)
    np.testing.assert_array_equal(decoded(png(index, 4, PALETTE, PLTE=colors.tobytes())), colors[index])
    cmyk = np.random.default_rng(1).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    ink = cmyk.astype(float)
    expected = np.clip(
        255 - ink[..., :3] - ink[..., 3:] + np.round(ink[..., :3] * ink[..., 3:] / 255), 0, 255
    )
    found = decoded(saved(Image.fromarray(cmyk, "CMYK"), "TIFF"))
    np.testing.assert_allclose(found, expected, atol=1)
    gray = Image.fromarray(np.stack([np.full((8, 8), v, np.uint8) for v in (200, 128, 128)], -1), "YCbCr")
    np.testing.assert_array_equal(decoded(saved(gray, "TIFF")), 200)
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    there = ImageCms.buildTransform(srgb, lab, "RGB", "LAB")
    photo = Image.fromarray(picture(2))
    in_lab = ImageCms.applyTransform(photo, there)
    assert in_lab is not None
    away = np.abs(decoded(saved(in_lab, "TIFF")).astype(int) - np.asarray(photo))
    assert away.mean() < 2  # 8 bits of LAB are coarser
    white = Image.merge("LAB", [Image.new("L", (4, 4), v) for v in (255, 128, 128)])
    assert decoded(saved(white, "TIFF")).min() >= 254


def test_inverted_inks_of_adobe():
    """A CMYK JPEG as Photoshop writes it (inverted, with its marker) shows the colors of the picture."""
    photo = Image.fromarray(picture(5, 64, 64))
    data = saved(photo.convert("CMYK"), "JPEG", quality=98)
    assert b"Adobe" in data and header(data, "x").mode == "CMYK"
    assert np.abs(decoded(data).astype(int) - np.asarray(photo)).mean() < 3


# Transparency


@pytest.mark.parametrize("background", ["white", "black", "#0ac84d"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composited_to_the_rounded_value(kind: str, background: str):
    """Every color with every alpha."""
    c, alpha = np.meshgrid(np.arange(256), np.arange(256))
    rgba = np.stack([c, 255 - c, c // 2, alpha], -1).astype(np.uint8)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    color = background_color(background)
    assert color is not None
    found = decoded(saved(Image.fromarray(rgba), kind, **options), background)
    np.testing.assert_array_equal(found, over(rgba[..., :3], alpha, color))


def test_every_way_to_be_transparent():
    """A transparent color (tRNS) of each kind of PNG, GIF's index, gray with alpha, premultiplied alpha."""
    for bits in (1, 2, 4, 8, 16):
        values = np.arange(256).reshape(16, 16) % (1 << bits)
        key = values[0, 1]
        data = png(values, bits, GRAY, tRNS=struct.pack(">H", key))
        plain = decoded(png(values, bits, GRAY))
        expected = np.where((values == key)[..., None], np.uint8(77), plain)
        np.testing.assert_array_equal(decoded(data, "#4d4d4d"), expected)
        assert header(data, "x").alpha and not header(png(values, bits, GRAY), "x").alpha
    colors = np.random.default_rng(0).integers(0, 256, (4, 4, 3))
    data = png(colors, 8, COLOR, tRNS=struct.pack(">HHH", *colors[2, 1]))
    colors[2, 1] = 255
    np.testing.assert_array_equal(decoded(data), colors)
    palette = np.random.default_rng(1).integers(0, 256, (16, 3), dtype=np.uint8)
    index, alpha = np.arange(16).reshape(4, 4), np.arange(16) * 17
    data = png(index, 8, PALETTE, PLTE=palette.tobytes(), tRNS=bytes(alpha.tolist()))
    assert header(data, "x").alpha
    np.testing.assert_array_equal(decoded(data), over(palette[index], alpha[index]))
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    data = saved(Image.merge("LA", [Image.fromarray(gray), Image.fromarray(gray.T.copy())]), "PNG")
    np.testing.assert_array_equal(decoded(data), over(np.repeat(gray[..., None], 3, -1), gray.T))
    alpha = np.full((8, 8), 128, np.uint8)
    premultiplied = np.stack([alpha // 2, alpha, alpha // 4, alpha], -1)
    found = decoded(tiff(premultiplied.tobytes(), 8, 8, [8] * 4, 2, extra=[1]))
    expected = premultiplied[..., :3].astype(int) + 127
    np.testing.assert_allclose(found, expected, atol=1)  # Pillow divides by alpha first
    both = np.stack([alpha // 2, alpha], -1)
    found = decoded(tiff(both.tobytes(), 8, 8, [8] * 2, 1, extra=[1]))
    np.testing.assert_allclose(found, 64 + 127, atol=1)


def transparent(folder: Path) -> Path:
    """Two classes: red with an alpha of a quarter, and without alpha."""
    red = np.zeros((32, 32, 4), np.uint8)
    red[..., 0], red[..., 3] = 200, 64
    for name, image in (("a", red), ("b", red[..., :3])):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.ascontiguousarray(image)).save(folder / name / "0.png")
    return folder


def test_the_background_through_inspect_encode_and_train(tmp_path: Path, capsys):
    folder = transparent(tmp_path / "tree")
    inspect = ["data", "inspect", str(folder), "--image-size", "32", "--sheet", str(tmp_path / "s.png")]
    assert main([*inspect, "--background", "black"]) == 0
    output = capsys.readouterr().out
    assert "1 image with an alpha channel or a transparent color: composited on black" in output
    assert np.asarray(Image.open(tmp_path / "s.png"))[10, 160].tolist() == [50, 0, 0]
    assert main([*inspect, "--background", "gray"]) == 2
    assert "a background must be white, black" in capsys.readouterr().err
    words = ["encode", str(folder), "--autoencoder", "pixels", "--image-size", "32", "--dtype", "float32"]
    for background, red in ((None, 241), ("black", 50), ("drop", 200)):
        out = tmp_path / str(background)
        more = ["--background", background] if background else []
        assert main([*words, "--out", str(out), *more]) == 0
        moments = Latents.open(out, flip=False).moments([0], [False])
        assert float(moments[0, 0, 5, 5]) == pytest.approx(red / 127.5 - 1, abs=1e-6)
    assert main([*words, "--out", str(tmp_path / "black")]) == 0  # goes on with what it began with
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "black"), "--background", "white"]) == 2
    assert "background: #000000 -> #ffffff" in capsys.readouterr().err


def on_images(folder: Path, *more: str):
    shape = ("model.in_channels=3", "model.input_size=32", "model.num_classes=2", "checkpoint.every=1")
    return tiny("data.name=images", f"data.path={folder}", "data.image_size=32", *shape, *more)


def steps(config, out: Path, resume: bool = False) -> list[float]:
    events = train(config, out, resume="auto" if resume else "never", device="cpu")
    return [event.loss for event in events if isinstance(event, Stepped)]


def test_a_run_keeps_the_background_that_it_began_with(tmp_path: Path):
    """New runs use white. A run from before the option dropped alpha; it resumes like that, bit for bit.
    Another background is another run."""
    folder = transparent(tmp_path / "tree")
    steps(on_images(folder, "train.steps=1"), tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["data"]["background"] == "white"
    dropped = steps(on_images(folder, "train.steps=2", "data.background=drop"), tmp_path / "whole")
    assert steps(on_images(folder, "train.steps=2"), tmp_path / "white") != dropped
    steps(on_images(folder, "train.steps=1", "data.background=drop"), tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    config = json.loads(path.read_text())
    del config["data"]["background"]
    path.write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"data.background: drop -> white"):
        steps(on_images(folder, "train.steps=2", "data.background=white"), tmp_path / "old", resume=True)
    assert steps(on_images(folder, "train.steps=2"), tmp_path / "old", resume=True) == dropped[1:]
    with pytest.raises(UsageError, match=r'data.background is for data.name="images"'):
        tiny("data.background=black")


def test_an_old_encoding_continues_without_a_background(tmp_path: Path, capsys):
    """Its request.json has no background. 16-bit gray, which would come out differently, is refused."""
    folder = transparent(tmp_path / "tree")
    words = ["encode", str(folder), "--autoencoder", "pixels", "--image-size", "32", "--per-file", "1"]
    assert main([*words, "--out", str(tmp_path / "one"), "--background", "drop"]) == 0
    assert "background" not in json.loads((tmp_path / "one" / "request.json").read_text())
    assert main([*words, "--out", str(tmp_path / "old"), "--background", "drop", "--shard", "0/2"]) == 0
    assert main([*words, "--out", str(tmp_path / "old")]) == 0
    for file in (tmp_path / "one").glob("*.*"):
        assert file.read_bytes() == (tmp_path / "old" / file.name).read_bytes()
    (folder / "a" / "0.png").write_bytes(png(RAMP[:32, :32], 16, GRAY))
    assert main([*words, "--out", str(tmp_path / "deep"), "--background", "drop"]) == 1
    assert "a/0.png has 16 bits per channel" in capsys.readouterr().err


def test_samples_and_references_are_never_silently_white(tmp_path: Path):
    """Evaluation accepts only 8-bit RGB or gray without any kind of transparency."""
    small = np.zeros((4, 4), np.uint16)
    cases = {
        "the mode I;16": png(small, 16, GRAY),
        "a transparent color": png(small, 8, GRAY, tRNS=bytes(2)),
        "16 bits per channel": png(np.zeros((4, 4, 3)), 16, COLOR),
    }
    for i, (says, data) in enumerate(cases.items()):
        folder = tmp_path / str(i)
        folder.mkdir()
        for name in ("0.png", "1.png"):
            (folder / name).write_bytes(data)
        with pytest.raises(UsageError, match=rf"0\.png has {says}"):
            list(open_samples(folder).batches())


# Shapes


def adm(image: Image.Image, side: int) -> np.ndarray:
    """ADM's crop as published, which computes the full image."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(1, 90), st.integers(1, EXTREME), st.integers(0, 89), st.integers(1, 48), st.booleans())
def test_ordinary_shapes_are_cropped_bit_for_bit_as_adm_does(short, ratio, rest, side, upright):
    long = max(short, short * ratio - rest % max(short, 1))
    image = noise(*((short, long) if upright else (long, short)))
    np.testing.assert_array_equal(crop(image, side), adm(image, side))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.integers(1, 40), st.integers(EXTREME + 1, 120), st.integers(0, 39), st.integers(1, 48), st.booleans()
)
def test_extreme_shapes_are_cropped_as_adm_does_to_a_rounding(short, ratio, rest, side, upright):
    long = short * ratio + rest % short
    image = noise(*((short, long) if upright else (long, short)))
    found = crop(image, side)
    assert found.shape == (side, side, 3)
    away = np.abs(found.astype(int) - adm(image, side))
    assert away.mean() < 1  # of noise, whose overshoots Pillow clips between its two passes, in either order
    smooth = Image.fromarray(picture(side, *image.size))
    assert np.abs(crop(smooth, side).astype(int) - adm(smooth, side)).max() <= 2


@pytest.mark.parametrize(("width", "height"), [(20_000, 1), (1, 5_000), (1_000_000, 3), (30, 60_000)])
def test_an_extreme_shape_takes_no_more_than_itself_and_the_result(width: int, height: int):
    """The first one took 12.7 GB at 256 x 256. It runs in its own process to measure the peak."""
    code = f"""
import io, numpy as np
from PIL import Image
from scaledit.data.decode import crop, decode
from scaledit.machine import peak_memory
buffer = io.BytesIO()
Image.new("RGB", ({width}, {height}), (7, 8, 9)).save(buffer, "PNG")
crop(Image.new("RGB", (300, 280)), 512)
before = peak_memory()
made = crop(decode(buffer.getvalue(), "x"), 512)
assert made.shape == (512, 512, 3) and (made == (7, 8, 9)).all()
print(peak_memory() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4 * 4 * (width * height + 512 * 512) + 8e6


def test_inspect_tells_extreme_shapes_and_frames(tmp_path: Path, capsys):
    folder = tree(tmp_path / "tree")
    (folder / "sky" / "row.png").write_bytes(saved(Image.new("L", (20_000, 1), 9), "PNG"))
    frames = [Image.fromarray(picture(i)) for i in range(3)]
    (folder / "sky" / "moves.webp").write_bytes(
        saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    )
    (folder / "sky" / "pages.tif").write_bytes(
        saved(frames[1], "TIFF", save_all=True, append_images=frames[2:])
    )
    assert main(["data", "inspect", str(folder), "--image-size", "32"]) == 0
    output = capsys.readouterr().out
    assert "1 image more than 16 times as long as wide: only the middle is used" in output
    assert "2 images of several frames or pages: the first is used" in output
    assert "PNG 9" in output and "nothing would be refused" in output
    np.testing.assert_array_equal(decoded((folder / "sky" / "moves.webp").read_bytes()), picture(0))
    np.testing.assert_array_equal(decoded((folder / "sky" / "pages.tif").read_bytes()), picture(1))


# Damage

SEEDS = {
    "png": lambda: encoded(0)[1],
    "jpeg": lambda: encoded(1)[1],
    "png16": SIXTEEN["png"],
    "tiff16": SIXTEEN["tiff big-endian"],
    "lzw": SIXTEEN["tiff lzw"],
    "palette": lambda: png(np.arange(16).reshape(4, 4), 4, PALETTE, PLTE=bytes(range(48)), tRNS=bytes(9)),
    "webp": lambda: saved(Image.fromarray(picture(0)).convert("RGBA"), "WEBP"),
    "bmp": lambda: saved(Image.fromarray(picture(0)), "BMP"),
    "cmyk": lambda: saved(Image.fromarray(picture(0)).convert("CMYK"), "JPEG"),
    "packbits": lambda: saved(Image.fromarray(picture(0)), "TIFF", compression="packbits"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SEEDS)
def test_damage_is_a_bad_image_or_an_image(kind: str):
    """150 seeded damages of each kind raise nothing but BadImage."""
    data, rng = SEEDS[kind](), random.Random(kind)
    refused = 0
    for _ in range(150):
        bad = bytearray(data)
        for _ in range(rng.choice((1, 1, 3, 20))):
            bad[rng.randrange(len(bad) if rng.random() < 0.5 else min(len(bad), 120))] = rng.randrange(256)
        if rng.random() < 0.2:
            del bad[rng.randrange(len(bad)) :]
        for look in (header, decode):
            try:
                look(bytes(bad), "x")
            except BadImage as error:
                assert str(error).startswith("x ") and "\n" not in str(error)
                refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    "error", [MemoryError, RecursionError, OverflowError("no"), struct.error("s"), zlib.error("z")]
)
def test_whatever_a_plugin_raises_is_a_bad_image(error, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fails)
    with pytest.raises(BadImage, match=r"^x cannot be read as an image: .+; save it again"):
        decode(encoded(0)[1], "x")
