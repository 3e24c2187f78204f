"""The tables of a recipe. The defaults are those of MERT-v1-95M's training, as far as they were published."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from featurestore.choices import PRECISIONS


def bounded_field(
    default: Any, *, least: float | None = None, most: float | None = None, among: Any = None
) -> Any:
    """A field with limits, of each of its items if it is a list, which `toml_config` checks."""
    return field(default=default, metadata={"least": least, "most": most, "among": among})


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is learned from.

    Attributes
    ----------
    folder : str
        Holds train.tsv, valid.tsv and the labels beside them.
    labels : tuple of str
        Codebooks: ``train.<name>`` holds their tokens, ``dict.<name>.txt`` their classes.
    window : float
        Seconds of a window.
    windows_per_file : {"one", "all"}
        How many windows of a file an epoch takes: a random one, or as many as fit.
    cache : str
        Where targets that are computed once are kept, by default the folder of the data.
    threads : int
        That read ahead, in each process.
    """

    folder: str = ""
    labels: tuple[str, ...] = ()
    window: float = bounded_field(5.0, least=0.1, most=600)
    windows_per_file: str = bounded_field("one", among=("one", "all"))
    cache: str = ""
    threads: int = bounded_field(1, least=1, most=64)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The network.

    Attributes
    ----------
    start : str
        Folder or hub name of a checkpoint to go on from; empty for random weights.
    shape : str
        "95m", "330m" or "tiny", where there is no `start`.
    config : dict
        Values of config.json that differ from the shape's.
    do_normalize : bool
        Whether windows are brought to zero mean and unit variance; with `start`, the checkpoint says it.
    """

    start: str = ""
    shape: str = "95m"
    config: dict[str, Any] = field(default_factory=dict)
    do_normalize: bool = False


@dataclass(frozen=True, kw_only=True)
class MaskingSettings:
    """Spans of frames that the network does not see.

    Attributes
    ----------
    probability : float
        Frames in all spans together, overlaps counted twice, over frames.
    span : int
        Frames of a span.
    schedule : tuple of (int, float)
        From which step on another probability holds.
    equal : bool
        Whether the windows of a pass give random masked frames back until all have as many as the poorest.
    """

    probability: float = bounded_field(0.8, least=0, most=1)
    span: int = bounded_field(5, least=1, most=1000)
    schedule: tuple[tuple[int, float], ...] = ()
    equal: bool = True


@dataclass(frozen=True, kw_only=True)
class MixingSettings:
    """Snippets of other windows of the batch that are added to a window.

    Attributes
    ----------
    probability : float
        Of a window to be mixed.
    seconds : tuple of float
        Shortest and longest snippet.
    count : tuple of int
        Fewest and most snippets.
    volume : float
        Factor of the snippets.
    """

    probability: float = bounded_field(0.5, least=0, most=1)
    seconds: tuple[float, float] = (0.5, 1.0)
    count: tuple[int, int] = (1, 3)
    volume: float = 1.0


@dataclass(frozen=True, kw_only=True)
class DropoutSettings:
    """What is dropped in training.

    Attributes
    ----------
    input, hidden, attention, activation : float
        Of frames before the transformer; of what attention and feed-forward give; of attention weights; inside
        the feed-forward.
    layers : float
        Probability of a transformer layer to be skipped.
    """

    input: float = bounded_field(0.1, least=0, most=0.99)
    hidden: float = bounded_field(0.1, least=0, most=0.99)
    attention: float = bounded_field(0.1, least=0, most=0.99)
    activation: float = bounded_field(0.0, least=0, most=0.99)
    layers: float = bounded_field(0.05, least=0, most=0.99)


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """Prediction of the codebooks' tokens.

    Attributes
    ----------
    masked, unmasked : float
        Weights of cross-entropy, summed over codebooks, at masked and at other frames.
    dim : int
        Of the space in which frames and tokens are compared.
    temperature : float
        By which cosine similarities are divided.
    """

    masked: float = bounded_field(1.0, least=0)
    unmasked: float = bounded_field(0.0, least=0)
    dim: int = bounded_field(64, least=1, most=1 << 16)
    temperature: float = bounded_field(0.1, least=1e-4)


@dataclass(frozen=True, kw_only=True)
class CqtSettings:
    """Reconstruction of a constant-Q spectrogram of the window, before it was mixed with others.

    Attributes
    ----------
    masked, everywhere : float
        Weights of the mean squared error at masked and at all frames.
    bins, bins_per_octave : int
        How many.
    lowest : float
        Hz.
    scale : {"magnitude", "log"}
        Magnitudes as librosa scales them, or their natural logarithm after 0.001 was added.
    centre : bool
        Whether the mean of each window is subtracted.
    layer : int
        Hidden state that predicts it, -1 for the last.
    compute : {"once", "always"}
        Once, into a file of half precision that the training reads, or in every step, on the device.
    """

    masked: float = bounded_field(1.0, least=0)
    everywhere: float = bounded_field(0.0, least=0)
    bins: int = bounded_field(336, least=1, most=4096)
    bins_per_octave: int = bounded_field(48, least=1, most=512)
    lowest: float = bounded_field(32.7, least=1)
    scale: str = bounded_field("magnitude", among=("magnitude", "log"))
    centre: bool = False
    layer: int = -1
    compute: str = bounded_field("once", among=("once", "always"))


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """A linear head for labels that the music is known to have.

    Attributes
    ----------
    name : str
        ``train.<name>.npy`` holds them: uint8 [frames of all files, classes].
    kind : {"multilabel", "classes"}
        Each class by itself (binary cross-entropy), or one of them (cross-entropy; frames without any class are
        left out).
    weight : float
        Of its loss.
    layer : int
        Hidden state that predicts it, -1 for the last.
    frames : {"all", "masked"}
        Where it is asked.
    positive : float
        Weight of what is there against what is not, of a multilabel.
    """

    name: str
    kind: str = bounded_field("multilabel", among=("multilabel", "classes"))
    weight: float = bounded_field(1.0, least=0)
    layer: int = -1
    frames: str = bounded_field("all", among=("all", "masked"))
    positive: float = bounded_field(1.0, least=0)


@dataclass(frozen=True, kw_only=True)
class VarianceSettings:
    """Keeps features from collapsing (Bardes et al. 2022, arXiv:2105.04906), on means over `frames` frames.

    Attributes
    ----------
    variance, covariance : float
        Weights of the hinge on standard deviations below 1, and of squared covariances.
    frames : int
        Frames that are averaged.
    layer : int
        Hidden state, -1 for the last.
    """

    variance: float = bounded_field(0.0, least=0)
    covariance: float = bounded_field(0.0, least=0)
    frames: int = bounded_field(25, least=1)
    layer: int = -1


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW, warmed up linearly, then decayed polynomially.

    Attributes
    ----------
    lr, end_lr : float
        Highest and last learning rate.
    warmup : int
        Steps.
    power : float
        Of the decay.
    betas : tuple of float
    eps, weight_decay : float
    clip : float
        Largest norm of all gradients together; 0 for none.
    """

    lr: float = bounded_field(5e-4, least=0)
    end_lr: float = bounded_field(0.0, least=0)
    warmup: int = bounded_field(32_000, least=0)
    power: float = bounded_field(1.0, least=0)
    betas: tuple[float, float] = bounded_field((0.9, 0.98), least=0, most=0.9999)
    eps: float = bounded_field(1e-6, least=0)
    weight_decay: float = bounded_field(0.01, least=0)
    clip: float = bounded_field(10.0, least=0)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How it runs.

    Attributes
    ----------
    steps : int
        Updates of the weights, all in all.
    batch : int
        Windows of one pass of one process.
    accumulate : int
        Passes of a process before an update.
    seed : int
        Of everything that is drawn.
    precision : {"fp32", "fp16", "bf16"}
        Of the network's arithmetic; weights stay in float32.
    compile : bool
        Whether torch.compile turns the network into C++ or GPU kernels first.
    checkpoint_every, evaluate_every, log_every : int
        Steps.
    keep : int
        Checkpoints that are kept.
    valid_windows : int
        Windows of valid.tsv that an evaluation looks at.
    probe : str
        Name of the auxiliary labels or the codebook that the probe predicts from pooled features.
    """

    steps: int = bounded_field(400_000, least=1)
    batch: int = bounded_field(16, least=1)
    accumulate: int = bounded_field(1, least=1)
    seed: int = bounded_field(1337, least=0)
    precision: str = bounded_field("fp32", among=PRECISIONS)
    compile: bool = False
    checkpoint_every: int = bounded_field(1_000, least=1)
    evaluate_every: int = bounded_field(1_000, least=1)
    log_every: int = bounded_field(10, least=1)
    keep: int = bounded_field(2, least=1)
    valid_windows: int = bounded_field(64, least=1)
    probe: str = ""
