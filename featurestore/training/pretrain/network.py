"""The network in training: MERT's encoder with its mask, its dropouts, and the heads of its losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from featurestore.errors import SettingError
from featurestore.models import MertEncoder, load_model
from featurestore.models.checkpoints.config import MertConfig
from featurestore.models.checkpoints.files import CONFIG, find_weights, read_json
from featurestore.models.checkpoints.hub import fetch
from featurestore.models.checkpoints.native import load_checkpoint, read_weights
from featurestore.models.checkpoints.shapes import SHAPES
from featurestore.models.kernels.fidelity import check_close, compared, test_signal
from featurestore.training.pretrain import convolutions
from featurestore.training.pretrain.corpus import Frames
from featurestore.training.pretrain.recipe import Recipe
from featurestore.training.pretrain.settings import DropoutSettings

TRAINING_TENSORS = "training.safetensors"
"""File of a checkpoint of a training that holds its heads and the state of its optimizer."""

MASK_NAMES = ("masked_spec_embed", "mask_emb", "encoder_mask_emb")


class TrainedEncoder(nn.Module):
    """The encoder with gradients.

    Parameters
    ----------
    encoder : MertEncoder
        Its weights are trained in place.
    dropout : DropoutSettings
    feature_gradient : float
        Factor of the gradient that reaches the convolutions over the samples; with 0 they stay as they are.
    mask : Tensor of float32, shape (dim,), optional
        What masked frames are replaced by; random if there is none.
    """

    def __init__(
        self, encoder: MertEncoder, dropout: DropoutSettings, feature_gradient: float, mask: Tensor | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.mask_embedding = nn.Parameter(torch.rand(encoder.dim) if mask is None else mask)
        self._layer_dropout, self._feature_gradient = dropout.layers, feature_gradient
        self.input_dropout, self.hidden_dropout = nn.Dropout(dropout.input), nn.Dropout(dropout.hidden)
        layers: Any = encoder.encoder.layers
        for layer in layers:
            layer.dropout.p = dropout.hidden
            layer.feed_forward.dropout.p = dropout.activation
            layer.attention.dropout = dropout.attention
        # The released checkpoints have it, one magnitude for each tap.
        weight_norm(encoder.encoder.pos_conv_embed.conv, dim=2)
        encoder.requires_grad_(True)
        if not feature_gradient:
            encoder.feature_extractor.requires_grad_(False)

    def forward(
        self, wave: Tensor, mask: Tensor, kept: tuple[bool, ...] | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Hidden states of windows of which some frames are masked.

        Parameters
        ----------
        wave : Tensor of float32, shape (windows, samples)
            Normalised, if the model wants it.
        mask : Tensor of bool, shape (windows, frames)
            Frames that are replaced by the mask.
        kept : tuple of bool, optional
            Which layers are not skipped.

        Returns
        -------
        states : list of Tensor of float32, shape (windows, frames, dim)
            0 to `layers`.
        penalty : Tensor, scalar
            Mean square of what the convolutions over the samples give.
        """
        encoder = self.encoder
        # A compiler has its own ways.
        plain = wave.device.type != "cpu" or torch.compiler.is_compiling()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._feature_gradient > 0):
            # Half precision is for machines that have quick convolutions anyway; grouped ones may be wrong in it.
            if plain or torch.is_autocast_enabled("cpu") or not convolutions.fits(encoder.config):
                features = encoder.feature_extractor(wave)
            else:
                features = convolutions.features(encoder.feature_extractor.conv_layers, wave, mask.shape[1])
        if 0 < self._feature_gradient < 1:
            features = features * self._feature_gradient + features.detach() * (1 - self._feature_gradient)
        penalty = features.float().square().mean()
        x = self.input_dropout(encoder.feature_projection(features))
        x = torch.where(mask[..., None], self.mask_embedding, x)
        position = encoder.encoder.pos_conv_embed
        x = x + (position(x) if plain else convolutions.positional(position, x))
        if not encoder.config.do_stable_layer_norm:
            x = encoder.encoder.layer_norm(x)
        x = self.hidden_dropout(x)
        states = [x]
        for number, layer in enumerate(encoder.encoder.layers, 1):
            if kept is None or kept[number - 1]:
                x = layer(x)
            if encoder.config.do_stable_layer_norm and number == encoder.layers:
                x = encoder.encoder.layer_norm(x)
            states.append(x)
        return states, penalty

    @torch.no_grad()
    def check_half(self, dtype: torch.dtype) -> None:
        """Compare a small pass in half precision on the CPU with the same one in float32.

        Parameters
        ----------
        dtype : torch.dtype
            float16 or bfloat16.

        Raises
        ------
        SettingError
            If they are far apart (`fidelity.LEAST_COSINE`).
        """
        wave, _ = self.encoder.prepared(test_signal(self.encoder.sample_rate, self.encoder.min_samples), None)
        mask = torch.zeros(len(wave), self.encoder.frames(wave.shape[1]), dtype=torch.bool)
        training = self.training
        self.eval()
        exact, _ = self(wave, mask)
        with torch.autocast("cpu", dtype=dtype):
            states, _ = self(wave, mask)
        self.train(training)
        name = "fp16" if dtype == torch.float16 else "bf16"
        check_close(compared(states, exact), f"run.precision {name}", 'run.precision = "fp32"')

    def draw_layers(self) -> tuple[bool, ...] | None:
        """Which layers are not skipped this time; None for all."""
        if not self.training or not self._layer_dropout:
            return None
        return tuple((torch.rand(self.encoder.layers) >= self._layer_dropout).tolist())


class Heads(nn.Module):
    """What predicts the targets from hidden states.

    Parameters
    ----------
    dim : int
        Of the hidden states.
    recipe : Recipe
    classes : dict of str to int
        Of each codebook.
    dense : dict of str to int
        Classes of each auxiliary head.
    """

    def __init__(self, dim: int, recipe: Recipe, classes: dict[str, int], dense: dict[str, int]) -> None:
        super().__init__()
        self.temperature = recipe.tokens.temperature
        self.classes = classes
        if classes:
            self.final_proj = nn.Linear(dim, recipe.tokens.dim * len(classes))
            self.label_embs_concat = nn.Parameter(torch.rand(sum(classes.values()), recipe.tokens.dim))
        if recipe.cqt.masked or recipe.cqt.everywhere:
            self.cqt = nn.Linear(dim, recipe.cqt.bins)
        # A module may not be called "keys" or "items".
        self.auxiliary = nn.ModuleDict({f"{name}_head": nn.Linear(dim, count) for name, count in dense.items()})

    @torch.no_grad()
    def take(self, weights: Mapping[str, Tensor]) -> list[str]:
        """Take over weights of the same name and shape; returns their names."""
        taken = {k: x for k, x in self.named_parameters() if k in weights and weights[k].shape == x.shape}
        for name, parameter in taken.items():
            parameter.copy_(weights[name])
        return list(taken)

    def dense_logits(self, name: str, x: Tensor) -> Tensor:
        """Logits of an auxiliary head for frames [frames, dim]."""
        logits: Tensor = self.auxiliary[f"{name}_head"](x)
        return logits.float()

    def token_logits(self, x: Tensor) -> dict[str, Tensor]:
        """Cosine similarities of frames [frames, dim] with the tokens of each codebook, over the temperature.

        Hsu et al. 2021, arXiv:2106.07447, equation 3, with a projection for each codebook.
        """
        projected = F.normalize(self.final_proj(x).float().view(len(x), len(self.classes), -1), dim=-1)
        tokens = torch.split(F.normalize(self.label_embs_concat, dim=-1), list(self.classes.values()))
        return {name: projected[:, i] @ tokens[i].T / self.temperature for i, name in enumerate(self.classes)}


@dataclass(frozen=True)
class Start:
    """What a training begins with.

    Attributes
    ----------
    encoder : MertEncoder
    config : dict
        Values of its config.json.
    mask : Tensor of float32, shape (dim,), or None
        What masked frames are replaced by, where the checkpoint has it.
    heads : dict of str to Tensor
        Of a checkpoint of a training.
    """

    encoder: MertEncoder
    config: dict[str, Any]
    mask: Tensor | None = None
    heads: dict[str, Tensor] = field(default_factory=dict)


def start(recipe: Recipe) -> Start:
    """The network that a recipe begins with: a checkpoint, or random weights from torch's generator.

    Raises
    ------
    SettingError
        If its shape is none, or its checkpoint is no MERT or HuBERT network.
    ModelError
        If the checkpoint cannot be loaded.
    """
    if recipe.model.start:
        return _from_checkpoint(recipe.model.start)
    if recipe.model.shape not in SHAPES:
        raise SettingError(f"model.shape must be one of {', '.join(SHAPES)}, not {recipe.model.shape!r}")
    values = {**SHAPES[recipe.model.shape], **recipe.model.config}
    if unknown := sorted(recipe.model.config.keys() - SHAPES["95m"].keys()):
        raise SettingError(
            f"there is no setting model.config.{unknown[0]}; allowed are {', '.join(SHAPES['95m'])}"
        )
    config = MertConfig.from_dict(values, source="model.config")
    rate = config.sample_rate or 24_000
    encoder = MertEncoder(config, sample_rate=rate, do_normalize=recipe.model.do_normalize, name="the new model")
    initialise(encoder)
    return Start(encoder, values)


def start_again(checkpoint: Path) -> Start:
    """The network of a checkpoint of this training, whose weights are then restored.

    Raises
    ------
    CheckpointError
        If it is damaged.
    """
    return Start(load_checkpoint(checkpoint, name=str(checkpoint)), read_json(checkpoint / CONFIG))


def _from_checkpoint(name: str) -> Start:
    encoder = load_model(name)
    if not isinstance(encoder, MertEncoder):
        raise SettingError(f"model.start: {name} is no MERT or HuBERT network")
    folder = Path(name).expanduser()
    folder = folder if folder.is_dir() else fetch(name)
    weights = read_weights(find_weights(folder))
    heads = read_weights([folder / TRAINING_TENSORS]) if (folder / TRAINING_TENSORS).is_file() else {}
    return Start(
        encoder,
        read_json(folder / CONFIG),
        next((weights[x].float() for x in MASK_NAMES if x in weights), None),
        {key.removeprefix("heads."): x for key, x in heads.items() if key.startswith("heads.")},
    )


@torch.no_grad()
def initialise(encoder: MertEncoder) -> None:
    """Random weights as fairseq gives them to HuBERT, drawn from torch's generator.

    Dense layers of the transformer have a deviation of 0.02 (BERT); convolutions over samples are those of He et
    al. 2015, arXiv:1502.01852; the positional convolution has ``sqrt(4 / (kernel * dim))``; the projection of the
    features is as torch makes it.
    """
    layers: Any = encoder.feature_extractor.conv_layers
    for layer in layers:
        nn.init.kaiming_normal_(layer.conv.weight)
    position: Any = encoder.encoder.pos_conv_embed.conv
    nn.init.normal_(position.weight, std=math.sqrt(4 / (position.kernel_size[0] * encoder.dim)))
    nn.init.zeros_(position.bias)
    for module in encoder.encoder.layers.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


def check_layers(recipe: Recipe, layers: int) -> None:
    """Raise a SettingError if a loss asks for a hidden state that there is not."""
    asked = {"cqt.layer": recipe.cqt.layer, "variance.layer": recipe.variance.layer}
    asked |= {f"layer of the head {head.name}": head.layer for head in recipe.heads}
    for name, layer in asked.items():
        if not -layers <= layer + 1 <= layers + 1:
            raise SettingError(f"{name} must be from 0 to {layers}, or -1 for the last, not {layer}")


def layout_of(encoder: MertEncoder, seconds: float) -> Frames:
    """How a window of some seconds becomes frames."""
    hop = math.prod(encoder.config.conv_stride)
    window = max(encoder.min_samples, round(seconds * encoder.sample_rate))
    window = -(-window // hop) * hop
    return Frames(encoder.sample_rate, hop, window, encoder.frames(window))
