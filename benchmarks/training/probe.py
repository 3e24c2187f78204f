"""Does an encoder hear music? Linear probes of its stored features.

    python -m benchmarks.training.probe_music PROBES --soundfont FluidR3Mono_GM.sf3
    python -m benchmarks.training.probe PROBES --model MINI --model logmel --random MINI \\
        --plot docs/mini-probes.png

Builds a store of every encoder and asks logistic regressions, layer by layer, for the pitch of single notes (49
keys), the family of the instrument (13), how many notes sound (1 to 6) and the composer (3). The soundfont was
never heard in training, nor were the instruments and pieces that the tests are made of:

    pitch, family, voices   fitted on some of the instruments that training knew, tested on some it never heard
    composer                fitted on some of the pieces that training never heard, tested on others

Every split draws both sides anew. The strength of regularisation, and for the table the layer, are chosen on the
training side alone. `--random MODEL` adds the same network with random weights. Needs scikit-learn, and matplotlib
for the plot.
"""

from __future__ import annotations

import argparse
import csv
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurestore import FeatureStore, build
from featurestore.models import load_model, save_random_checkpoint

Matrix = npt.NDArray[np.float32]

STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Values of scikit-learn's C, the inverse of the strength of regularisation."""

POOLINGS = ("mean", "mean+std")

TASKS = {"pitch": ("notes", "key"), "family": ("notes", "family"), "voices": ("voices", "voices"),
         "composer": ("pieces", "composer")}  # fmt: skip
"""Each probe's clips and what it asks for."""


@dataclass(frozen=True)
class Split:
    """Rows to fit on, with those that choose among fits, and rows to test on."""

    train: npt.NDArray[np.int64]
    choose: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]


def splits(clips: list[dict[str, str]], task: str, count: int, seed: int) -> Iterator[Split]:
    """Draw groups (instruments or pieces) for each side; no group is on two of them."""
    groups = np.array([x["group"] for x in clips])
    held_out = np.array([x["held_out"] == "1" for x in clips])
    for number in range(count):
        draw = np.random.default_rng((seed, number))
        if task == "composer":
            names = draw.permutation(sorted(set(groups)))
            test = set(names[: len(names) // 3])
            known = names[len(names) // 3 :]
        else:
            test = set(_share(draw, groups[held_out], 0.7))
            known = _share(draw, groups[~held_out], 0.8)
        choose = set(known[: len(known) // 4])
        train = set(known[len(known) // 4 :])
        yield Split(*(np.flatnonzero([x in side for x in groups]) for side in (train, choose, test)))


def _share(draw: np.random.Generator, groups: npt.NDArray[np.str_], share: float) -> npt.NDArray[np.str_]:
    names = draw.permutation(sorted(set(groups)))
    return names[: round(share * len(names))]


def fitted(x: Matrix, y: npt.NDArray[np.str_], strength: float):
    """A logistic regression of standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300, tol=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that is stopped early is a weaker one, and `choose` tells
        return model.fit(x, y)


def score(x: Matrix, y: npt.NDArray[np.str_], split: Split) -> tuple[float, float]:
    """Accuracy on the rows that choose, and on the tests after a fit of all training rows, in percent."""
    found = [fitted(x[split.train], y[split.train], c).score(x[split.choose], y[split.choose]) for c in STRENGTHS]
    best = int(np.argmax(found))
    rows = np.concatenate([split.train, split.choose])
    return 100 * found[best], 100 * fitted(x[rows], y[rows], STRENGTHS[best]).score(x[split.test], y[split.test])


def pooled(folder: Path, clips: list[dict[str, str]], model: str, name: str, workers: int) -> dict[str, Matrix]:
    """Features [clip, layer, feature] by pooling, from a store that holds every frame."""
    digest = load_model(model).weights_sha256
    kept = folder / f"{name}-{(digest or 'none')[:12]}.pooled.npz"
    path = kept.with_suffix(".store")
    if not kept.exists():
        report = build(
            folder / "audio", path, model=model, overlap=0.0, dtype="float16", workers=workers, feature_level="all"
        )
        if report.failed:
            raise SystemExit(f"{report.failed} clips failed: {report.errors}")
        store = FeatureStore(path)
        means, deviations = [], []
        for clip in clips:
            frames = store.raw(clip["track_id"], layer=None).to_numpy().astype(np.float32)
            frames = frames.transpose(1, 0, 2, 3).reshape(frames.shape[1], -1, frames.shape[3])
            means.append(frames.mean(axis=1))
            deviations.append(frames.std(axis=1))
        mean, deviation = np.stack(means), np.stack(deviations)
        np.savez(kept, **{"mean": mean, "mean+std": np.concatenate([mean, deviation], axis=2)})
    return dict(np.load(kept))


def linear_probe(clips: list[dict[str, str]], features: dict[str, Matrix], count: int, seed: int) -> list[dict]:
    """Results by task, pooling, layer and split."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # more threads for such small matrices take ten times as long
        return _linear_probe(clips, features, count, seed)


def _linear_probe(clips: list[dict[str, str]], features: dict[str, Matrix], count: int, seed: int) -> list[dict]:
    rows = []
    for task, (kind, label) in TASKS.items():
        chosen = [i for i, x in enumerate(clips) if x["probe_set"] == kind]
        if not chosen:
            continue
        y = np.array([clips[i][label] for i in chosen])
        for number, split in enumerate(splits([clips[i] for i in chosen], task, count, seed)):
            for pooling in POOLINGS:
                for layer in range(features[pooling].shape[1]):
                    x = features[pooling][chosen, layer]
                    choose, test = score(x, y, split)
                    rows.append({"task": task, "pooling": pooling, "layer": layer, "split": number,
                                 "choose": choose, "test": test})  # fmt: skip
    return rows


def best(rows: list[dict], task: str, pooling: str) -> npt.NDArray[np.float64]:
    """Test accuracy of each split, of the layer that its training rows chose."""
    found: dict[int, dict] = {}
    for row in rows:
        if (row["task"], row["pooling"]) == (task, pooling):
            before = found.get(row["split"])
            if before is None or row["choose"] > before["choose"]:
                found[row["split"]] = row
    return np.array([found[x]["test"] for x in sorted(found)])


def table(results: dict[str, list[dict]]) -> str:
    """Mean and standard deviation over splits, as Markdown."""
    tasks = [x for x in TASKS if any(row["task"] == x for rows in results.values() for row in rows)]
    lines = ["| features | pooling | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 2) + "|"]
    for name, rows in results.items():
        for pooling in POOLINGS:
            cells = [best(rows, task, pooling) for task in tasks]
            shown = " | ".join(f"{x.mean():.1f} ± {x.std():.1f}" for x in cells)
            lines.append(f"| {name} | {pooling} | {shown} |")
    return "\n".join(lines)


def plot(results: dict[str, list[dict]], path: Path) -> None:
    """Accuracy by layer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(TASKS), figsize=(3.4 * len(TASKS), 3.4), constrained_layout=True)
    for axis, task in zip(axes, TASKS, strict=True):
        for number, (name, rows) in enumerate(results.items()):
            for pooling, style in zip(POOLINGS, ("-", "--"), strict=True):
                chosen = [x for x in rows if (x["task"], x["pooling"]) == (task, pooling)]
                layers = sorted({x["layer"] for x in chosen})
                means = [np.mean([x["test"] for x in chosen if x["layer"] == layer]) for layer in layers]
                axis.plot(layers, means, style, color=f"C{number}", marker=".", label=f"{name}, {pooling}")
        axis.set(title=task, xlabel="layer", ylabel="accuracy, %" if axis is axes[0] else "")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("probes", type=Path, help="folder that benchmarks.training.probe_music has filled")
    parser.add_argument("--model", action="append", default=[], help="name or folder; may be given several times")
    parser.add_argument("--random", action="append", default=[], metavar="MODEL", help="its shape, random weights")
    parser.add_argument("--splits", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    with open(arguments.probes / "clips.csv", newline="", encoding="utf-8") as file:
        clips = list(csv.DictReader(file))
    wanted = {Path(x).name: x for x in arguments.model}
    if len(wanted) < len(arguments.model):
        raise SystemExit("two models have one name: rename a folder")
    for model in arguments.random:
        name = f"{Path(model).name} with random weights"
        wanted[name] = str(randomised(model, arguments.probes / "random" / Path(model).name))
    results: dict[str, list[dict]] = {}
    for name, model in wanted.items():
        features = pooled(arguments.probes, clips, model, name.replace(" ", "-"), arguments.workers)
        results[name] = linear_probe(clips, features, arguments.splits, arguments.seed)
        print(table({name: results[name]}), flush=True)
    (arguments.probes / "results.json").write_text(json.dumps(results), encoding="utf-8")
    print(f"\naccuracy in %, mean ± deviation over {arguments.splits} splits\n\n{table(results)}")
    if arguments.plot:
        plot(results, arguments.plot)


def randomised(model: str, folder: Path) -> Path:
    """A checkpoint of the shape of `model` with random weights, as HuBERT is initialised."""
    from dataclasses import asdict

    encoder = load_model(model)
    shape = {"model_type": "mert_model", **json.loads(json.dumps(asdict(encoder.config)))}
    return save_random_checkpoint(folder, shape=shape, do_normalize=encoder.do_normalize)


if __name__ == "__main__":
    main()
