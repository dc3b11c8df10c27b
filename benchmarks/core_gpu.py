"""Compares the sampling and training speed and the images of two source trees on one GPU, in pairs.

    python benchmarks/core_gpu.py build/old/src results.json        needs torch with CUDA, and numpy

The model is DiT-B/2 at 256x256 with random weights. Sampling uses DDIM with guidance on three channels, as in
the paper. Training runs the forward and backward passes of the paper's objective in bf16. Of this tree, the
benchmark also compares rows at different steps with each row alone, and the derivative in time of the linear
flow with finite differences.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1] / "src"
PAIRS = 6
WORK = """
import hashlib, json, sys, time
import torch
from scaledit.models.config import DiTConfig
from scaledit.models.dit import DiT
from scaledit.diffusion import *
torch.manual_seed(0)
net = DiT(DiTConfig.named("DiT-B/2")).cuda().eval()
with torch.no_grad():
    for p in net.parameters():
        p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).cuda())
denoiser = NetDenoiser(net, LinearBeta(), LearnedRange(Epsilon()))
def timed(work, repeats):
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize(); began = time.perf_counter(); out = work(); torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return out, sorted(times)[len(times) // 2]
n = 32
y = (torch.arange(n) * 31 % 1000).cuda()
noise = Noise(0, range(n), (4, 32, 32), "cuda")
generate = lambda: sample(ClassifierFree(denoiser, 4.0, channels=3), DDIM(steps=20), noise, y)
generate()
images, seconds = timed(generate, 1)
net.train()
x0, eps = torch.randn(64, 4, 32, 32, device="cuda"), torch.randn(64, 4, 32, 32, device="cuda")
t, labels = torch.arange(64, dtype=torch.float64) * 15, torch.arange(64).cuda()
def step():
    net.zero_grad()
    with torch.autocast("cuda", torch.bfloat16):
        loss = Hybrid()(denoiser, x0, labels, t, eps).total.mean()
    loss.backward()
    return float(loss)
step(); step()
loss, of_step = timed(step, 200)
digest = hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()
print(json.dumps({"sampling": n / seconds, "training": 64 / of_step, "loss": loss, "images": digest,
    "device": torch.cuda.get_device_name(), "torch": torch.__version__}))
"""
NEW = """
import json, torch
from scaledit.models.config import DiTConfig
from scaledit.models.dit import DiT
from scaledit.diffusion import *
torch.manual_seed(0)
net = DiT(DiTConfig(32, 4, 4, 128, 4, 4, 10, learn_sigma=False)).cuda()
for p in net.parameters():
    torch.nn.init.normal_(p, std=0.05)
flow, chain = NetDenoiser(net, LinearFlow(), Velocity()), NetDenoiser(net, LinearBeta(), Epsilon())
worst, STEPS = {}, (4, 7, 12)
with torch.no_grad():
    for denoiser in (flow, chain):
        for kind in (DDPM, DDIM, DPMSolver, UniPC, Heun, Euler):
            noise = lambda s: Noise(s, range(2), (4, 32, 32), "cuda")
            label = lambda s: torch.tensor([s % 10, 3]).cuda()
            jobs = [Job(kind(steps=s), noise(s), label(s), (ClassifierFree(scale=1 + s / 8),)) for s in STEPS]
            together = sample_many(denoiser, jobs)
            alone = [
                sample(ClassifierFree(denoiser, 1 + s / 8), kind(steps=s), noise(s), label(s)) for s in STEPS]
            off = max(float(((a - b).abs().max()) / a.abs().max()) for a, b in zip(alone, together))
            worst[f"{kind.__name__} {type(denoiser.schedule).__name__}"] = off
net = net.double()
x = torch.randn(2, 4, 32, 32, dtype=torch.float64, device="cuda")
t, y = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([1, 2]).cuda()
guided = ClassifierFree(NetDenoiser(net, LinearFlow(), Velocity()), 2.0)
f = lambda t: guided(x, t, y).x0
_, d = torch.func.jvp(f, (t,), (torch.ones_like(t),))
h = 1e-5
with torch.no_grad():
    fd = (f(t + h) - f(t - h)) / (2 * h)
print(json.dumps({"rows_relative": worst, "jvp_relative": float((d - fd).abs().max() / fd.abs().max())}))
"""


def run(tree: Path, code: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    old, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    found: dict[str, list[dict[str, Any]]] = {"here": [], "against": []}
    for pair in range(PAIRS):
        order = ("here", "against") if pair % 2 == 0 else ("against", "here")
        for name in order:
            found[name].append(run(HERE if name == "here" else old, WORK))
    first = found["here"][0]
    ratios = {
        work: [a[work] / b[work] for a, b in zip(found["here"], found["against"], strict=True)]
        for work in ("sampling", "training")
    }
    result = {
        "device": first["device"],
        "torch": first["torch"],
        "unit": "images per second",
        "runs": found,
        "ratio": {work: statistics.median(values) for work, values in ratios.items()},
        "ratios": ratios,
        "same_images": len({one["images"] for runs in found.values() for one in runs}) == 1,
        "this_tree": run(HERE, NEW),
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
