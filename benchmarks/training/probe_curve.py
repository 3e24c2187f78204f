"""How a training goes, seen by small probes: the learning curve of docs/mini.md.

    python -m benchmarks.training.probe_music DEV --soundfont TimGM6mb.sf2 --set notes --set voices
    python -m benchmarks.training.probe_curve DEV RUN/checkpoints/* --plot docs/mini-curve.png

Ridge regressions of mean-pooled states ask for pitch, family and the number of notes of instruments that were
held out, in the soundfont of the training (the probes of `benchmarks.training.probe` use another one,
and are not looked at while a training goes). Needs matplotlib for the plot.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch

from featurestore.models import Encoder, load_model

PENALTY, BATCH = 30.0, 16
TASKS = {"pitch": ("notes", "key"), "family": ("notes", "family"), "voices": ("voices", "voices")}


def pooled(encoder: Encoder, waves: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
    """Means over time [clip, layer, feature]."""
    found = []
    for first in range(0, len(waves), BATCH):
        batch = torch.from_numpy(np.stack(waves[first : first + BATCH]))
        found.append(torch.stack([x.mean(dim=1) for x in encoder.states(batch)], dim=1))
    return torch.cat(found).double().numpy()


def accuracy(x: npt.NDArray[np.float64], y: npt.NDArray[np.int64], test: npt.NDArray[np.bool_]) -> float:
    """Of a ridge regression of classes on standardised features, in percent."""
    x = (x - x[~test].mean(axis=0)) / (x[~test].std(axis=0) + 1e-6)
    classes = np.eye(y.max() + 1)[y]
    mean = classes[~test].mean(axis=0)
    known = x[~test]
    gram = known.T @ known + PENALTY * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, known.T @ (classes[~test] - mean))
    return 100 * float(((x[test] @ weights + mean).argmax(axis=1) == y[test]).mean())


def effective_rank(x: npt.NDArray[np.float64]) -> float:
    """Exponential of the entropy of the shares of variance of the principal components."""
    shares = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
    shares = shares / shares.sum()
    return float(np.exp(-(shares * np.log(shares + 1e-12)).sum()))


def measure(model: str, folder: Path, clips: list[dict[str, str]]) -> dict[str, list[float]]:
    """Accuracies and the effective rank, by layer."""
    encoder = load_model(model)
    found: dict[str, list[float]] = {}
    for kind in ("notes", "voices"):
        chosen = [x for x in clips if x["probe_set"] == kind]
        waves = [soundfile.read(folder / "audio" / f"{x['track_id']}.wav", dtype="float32")[0] for x in chosen]
        features = pooled(encoder, waves)
        test = np.array([x["held_out"] == "1" for x in chosen])
        for task, (of, label) in TASKS.items():
            if of == kind:
                y = np.unique([x[label] for x in chosen], return_inverse=True)[1]
                found[task] = [accuracy(features[:, layer], y, test) for layer in range(features.shape[1])]
        if kind == "notes":
            found["effective rank"] = [effective_rank(features[:, x]) for x in range(features.shape[1])]
    return found


def plot(rows: list[dict], baselines: list[dict], path: Path) -> None:
    """The best layer of each checkpoint, and of the baselines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [*TASKS, "effective rank"]
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3.2), constrained_layout=True)
    for axis, name in zip(axes, names, strict=True):
        axis.plot([x["step"] for x in rows], [max(x[name]) for x in rows], marker=".", label="training")
        for number, row in enumerate(baselines, 1):
            axis.axhline(max(row[name]), color=f"C{number}", linestyle="--", label=Path(row["model"]).name)
        axis.set(title=name, xlabel="step", ylim=(0, None))
    axes[0].set_ylabel("accuracy, %")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("probes", type=Path, help="folder that benchmarks.training.probe_music has filled")
    parser.add_argument("models", nargs="+", help="checkpoints, whose names end in a step, and baselines")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with open(arguments.probes / "clips.csv", newline="", encoding="utf-8") as file:
        clips = list(csv.DictReader(file))
    # Half of the training's instruments are enough for a curve.
    clips = [x for number, x in enumerate(clips) if x["held_out"] == "1" or number % 2 == 0]
    kept = arguments.probes / "curve.jsonl"
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    known = {row["model"]: row for row in map(json.loads, lines)}
    rows = []
    for model in arguments.models:
        name = str(Path(model).resolve())
        if name not in known:
            step = re.search(r"step-0*(\d+)$", name)
            found = measure(model, arguments.probes, clips)
            shown = {key: [round(x, 1) for x in values] for key, values in found.items()}
            known[name] = {"model": name, "step": int(step[1]) if step else None, **shown}
            with open(kept, "a", encoding="utf-8") as file:
                print(json.dumps(known[name]), file=file)
        rows.append(known[name])
        print(json.dumps(known[name]), flush=True)
    if arguments.plot:
        steps = sorted((x for x in rows if x["step"] is not None), key=lambda x: x["step"])
        plot(steps, [x for x in rows if x["step"] is None], arguments.plot)


if __name__ == "__main__":
    main()
