"""Write the checkpoint that the training of `mini` starts from: convolutions that compute a spectrum.

    python -m benchmarks.training.spectral_start OUT MUSIC/*.wav

The network is MERT's (HuBERT's) and nothing else; only the weights that it starts from are chosen instead of
drawn. For GELU, g(x) - g(-x) = x, so a pair of channels that carry x and -x hands x on exactly: six convolutions
pass the samples on in ever longer blocks, each in a cosine basis (DCT-II), and the seventh is a bank of windowed
sinusoids, two phases for each frequency. What is left of the channels is drawn as usual.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from featurestore.models import load_model, save_random_checkpoint
from featurestore.models.checkpoints.shapes import SHAPES

Matrix = npt.NDArray[np.float64]

RATE, WINDOW = 24_000, 320
"""Hz; samples that a filter of the last convolution sees."""

PAIRED, SINGLE, SMALL = 64, 64, 0.05
"""Coefficients of the sixth convolution that have a pair of channels; those with one, and the scale of these."""

FREQUENCIES, PHASES, TAPER = 95, 2, 0.3

CONSTANT = 40.0
"""What one channel of the last convolution always gives: without it, the layer norm that follows would make all
frames equally loud."""

LONGEST, GENTLE = 24, 0.3
"""Frames of the narrowest filters of the positional convolution; what the layers' branches start from."""

SHAPE = {
    **SHAPES["tiny"],
    "conv_dim": [32, 32, 64, 96, 176, 208, 192],
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_attention_heads": 3,
    "num_hidden_layers": 4,
    "num_conv_pos_embeddings": 64,
    "do_stable_layer_norm": True,
}


def cosines(size: int) -> Matrix:
    """The orthonormal DCT-II of blocks of `size` samples, [coefficient, sample]."""
    k, n = np.mgrid[:size, :size]
    basis = np.cos(np.pi / size * (n + 0.5) * k) * np.sqrt(2 / size)
    basis[0] /= np.sqrt(2)
    return basis


def frequencies() -> Matrix:
    """Hz of the filters of the last convolution: every 25 Hz up to 1 kHz, then evenly on a log scale."""
    low = np.arange(50.0, 1_000.0, 25.0)
    return np.concatenate([low, np.geomspace(1_000, 9_000, FREQUENCIES - len(low))])


def sinusoids() -> Matrix:
    """Filters [frequency * phase, sample] of the last convolution."""
    from scipy.signal.windows import tukey

    time = np.arange(WINDOW) / RATE
    phases = np.pi / 2 * np.arange(PHASES)
    turns = 2 * np.pi * frequencies()[:, None, None] * time + phases[:, None]
    return (np.cos(turns) * tukey(WINDOW + 2, TAPER)[1:-1]).reshape(-1, WINDOW)


def narrow(groups: int, kernel: int) -> Matrix:
    """Weights [out, in of its group, frame] of a positional convolution of narrow bands between those frequencies.

    A band of a few Hz is a long sinusoid; what each frame has of it is a sum of the wide filters of its group.
    """
    bank, hertz = sinusoids(), frequencies()
    width = -(-len(bank) // groups)
    bank = np.pad(bank, ((0, -len(bank) % width), (0, 0)))
    weights = np.zeros((len(bank), width, kernel))
    for group in range(groups):
        wide = bank[group * width : (group + 1) * width]
        solve = np.linalg.pinv(wide.T, rcond=0.03)
        centres = hertz[group * width // PHASES : (group + 1) * width // PHASES]
        gap = (centres[-1] - centres[0]) / (len(centres) - 1) / PHASES
        frames = int(np.clip(round(2 / gap * RATE / WINDOW), 3, LONGEST))
        first = kernel // 2 - frames // 2
        time = np.arange(frames * WINDOW) / RATE
        window = np.hanning(len(time) + 2)[1:-1]
        for number in range(width):
            turns = 2 * np.pi * (centres[0] + (number - 0.5) * gap) * time + np.pi / 2 * (number % 2)
            blocks = (np.cos(turns) * window).reshape(frames, WINDOW)
            weights[group * width + number, :, first : first + frames] = solve @ blocks.T
    return weights


def spread(matrix: Matrix, pairs: int) -> Matrix:
    """A map of values as one of channels: the first `pairs` values have two, the others one, made small."""
    signed = np.repeat(matrix[:, :pairs], 2, axis=1) * np.tile([1.0, -1.0], pairs)
    # Close to zero GELU is half its argument.
    return np.concatenate([signed, matrix[:, pairs:] * 2 / SMALL], axis=1)


def doubled(matrix: Matrix) -> Matrix:
    """Each row followed by its negative."""
    return np.stack([matrix, -matrix], axis=1).reshape(-1, matrix.shape[1])


def kernels() -> list[Matrix]:
    """Weights [out, position * in] of the seven convolutions, as far as they are chosen."""
    first = np.zeros((10, 10))
    for sample in range(5):
        first[2 * sample, sample], first[2 * sample + 1, sample] = 1, -1
    chosen, before = [first], np.eye(5)
    for size in (10, 20, 40, 80, 160):
        now = cosines(size)
        half = size // 2
        # Values of a block from the values of its two halves.
        parts = [now[:, at : at + half] @ before.T for at in (0, half)]
        if size < 160:
            chosen.append(doubled(np.concatenate([spread(x, half) for x in parts], axis=1)))
        else:
            rows = np.concatenate([spread(x, half) for x in parts], axis=1)[: PAIRED + SINGLE]
            chosen.append(np.concatenate([doubled(rows[:PAIRED]), rows[PAIRED:] * SMALL]))
        before = now
    kept = before[: PAIRED + SINGLE]
    bank = sinusoids()
    last = [spread(bank[:, at : at + 160] @ kept.T, PAIRED) for at in (0, 160)]
    chosen.append(np.concatenate(last, axis=1))
    return chosen


def write(state: dict[str, Tensor], chosen: list[Matrix]) -> None:
    """Put chosen weights into the first channels of the convolutions of a state."""
    inputs = 1
    for index, matrix in enumerate(chosen):
        weight = state[f"feature_extractor.conv_layers.{index}.conv.weight"]
        out = len(matrix)
        weight[:out] = 0
        positions = matrix.shape[1] // inputs
        values = torch.from_numpy(matrix).float().view(out, positions, inputs).transpose(1, 2)
        weight[:out, :inputs, :positions] = values
        inputs = out
    write_constant(state)


def write_constant(state: dict[str, Tensor]) -> None:
    """The last channels but one of the convolutions: a constant that the bias of the group norm begins."""
    convolutions = "feature_extractor.conv_layers"
    state[f"{convolutions}.0.layer_norm.bias"][-2] = 1
    last = len(SHAPE["conv_dim"]) - 1
    for index in range(last + 1):
        weight = state[f"{convolutions}.{index}.conv.weight"]
        weight[-2] = 0
        if index:
            weight[-2, -2, 0] = (CONSTANT if index == last else 1) / torch.nn.functional.gelu(torch.ones(()))


def write_rest(state: dict[str, Tensor]) -> None:
    """Frames become the first state as they are, with the narrow bands; the branches of the layers add little."""
    # The layer norm divides by about this much in frames of little sound.
    loudest = CONSTANT / SHAPE["hidden_size"] ** 0.5
    state["feature_projection.projection.weight"].copy_(loudest * torch.eye(SHAPE["hidden_size"]))
    state["feature_projection.projection.weight"][-2, -2] = 0.25
    for key, value in state.items():
        if value.ndim == 2 and key.startswith("encoder.layers"):
            value *= value.shape[1] ** -0.5 / 0.02
            if "out_proj" in key or "output_dense" in key:
                value *= GENTLE
    bands = narrow(SHAPE["num_conv_pos_embedding_groups"], SHAPE["num_conv_pos_embeddings"])
    write_bands(state, torch.from_numpy(bands).float())


def write_bands(state: dict[str, Tensor], kernel: Tensor) -> None:
    """The positional convolution, as direction and magnitude of each tap."""
    # A tap of nothing but zeros would have no direction.
    kernel = kernel + 1e-3 * kernel.std() * torch.randn(kernel.shape, generator=torch.Generator().manual_seed(0))
    state["encoder.pos_conv_embed.conv.weight_v"].copy_(kernel)
    norms = torch.linalg.vector_norm(kernel, dim=(0, 1), keepdim=True)
    state["encoder.pos_conv_embed.conv.weight_g"].copy_(norms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "music", nargs="+", type=Path, help="24 kHz, mono; the loudness of each filter is set by it"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    save_random_checkpoint(arguments.out, shape=SHAPE, seed=arguments.seed)
    weights = arguments.out / "model.safetensors"
    state = load_file(weights)
    write(state, kernels())
    save_file(state, weights, metadata={"format": "pt"})

    # Unit variance of each filter over the music, so that quiet treble counts as much as loud bass.
    model = load_model(arguments.out)
    waves = [soundfile.read(x, dtype="float32", frames=5 * RATE)[0] for x in arguments.music]
    with torch.no_grad():
        wave, _ = model.prepared(torch.stack([torch.from_numpy(x) for x in waves if len(x) == 5 * RATE]), None)
        x = wave[:, None]
        *rest, last = model.feature_extractor.conv_layers
        for layer in rest:
            x = layer(x)
        deviation = last.conv(x).std(dim=(0, 2))
        deviation[-2] = 1
    state["feature_extractor.conv_layers.6.conv.weight"] /= deviation[:, None, None]
    write_rest(state)
    save_file(state, weights, metadata={"format": "pt"})

    # The same for the narrow bands.
    model = load_model(arguments.out)
    convolution = model.encoder.pos_conv_embed.conv
    with torch.no_grad():
        frames = model.feature_projection(model.feature_extractor(wave))
        deviation = convolution(frames.transpose(1, 2)).std(dim=(0, 2))
        write_bands(state, convolution.weight / deviation[:, None, None])
    save_file(state, weights, metadata={"format": "pt"})
    print(json.dumps({"parameters": sum(x.numel() for x in state.values())}))


if __name__ == "__main__":
    main()
