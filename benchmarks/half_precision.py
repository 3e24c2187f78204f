"""Make a small checkpoint of a trained one: weights in half precision, its two configurations as they are.

python -m benchmarks.half_precision RUN/checkpoints/step-00013000 OUT
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from featurestore.models import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(arguments.checkpoint / name, arguments.out / name)
    state = load_file(arguments.checkpoint / "model.safetensors")
    halved = {key: value.half() for key, value in sorted(state.items())}
    save_file(halved, arguments.out / "model.safetensors", metadata={"format": "pt"})
    (arguments.out / "model.safetensors").chmod(0o644)
    before, after = load_model(arguments.checkpoint), load_model(arguments.out)
    wave = torch.randn(1, 48_000, generator=torch.Generator().manual_seed(0))
    pairs = zip(before.states(wave), after.states(wave), strict=True)
    largest = max(float((x - y).abs().max() / x.abs().max()) for x, y in pairs)
    size = sum(x.stat().st_size for x in arguments.out.iterdir())
    print(f"{arguments.out}: {size / 1e6:.2f} MB; features differ by {largest:.1e} of a state's largest value")


if __name__ == "__main__":
    main()
