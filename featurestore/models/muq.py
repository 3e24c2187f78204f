"""MuQ and MusicFM in plain torch: mel spectra, a residual network that subsamples them, and Conformer blocks.

MuQ: Zhu et al. 2025, arXiv:2501.01108; MusicFM: Won et al. 2023, arXiv:2311.03318; the residual network:
He et al. 2015, arXiv:1512.03385.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurestore.models.checkpoints.config_muq import CONTEXT_SECONDS, N_FFT, SAMPLE_RATE, MuqConfig
from featurestore.models.conformer import BatchNorm, Block, BlockShape, ConformerEncoder, ConformerNetwork
from featurestore.models.frontends import StandardMel


class _Residual(nn.Module):
    """Two convolutions over bands and spectra beside one."""

    def __init__(self, width: int, channels: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, channels, 3, stride, padding=1)
        self.bn1 = BatchNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = BatchNorm(channels)
        self.conv3 = nn.Conv2d(width, channels, 3, stride, padding=1)
        self.bn3 = BatchNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu_()))
        return F.relu_(out + self.bn3(self.conv3(x)))


class _Subsampler(nn.Module):
    """Bands are halved twice, and spectra as often as the strides say."""

    def __init__(self, config: MuqConfig) -> None:
        super().__init__()
        first, second = config.strides
        self.conv = nn.Sequential(
            _Residual(1, config.conv_dim, (2, first)), _Residual(config.conv_dim, config.conv_dim, (2, second))
        )
        self.linear = nn.Linear(config.conv_dim * config.n_mels // 4, config.encoder_dim)

    def forward(self, spectra: Tensor) -> Tensor:
        # One window at a time: 30 s of 512 channels take 200 MB in each of the first layers.
        frames = [self.conv(x).permute(0, 3, 1, 2).flatten(2) for x in spectra.mT[:, None, None]]
        # Back to full precision: the residual stream that starts here outgrows half.
        out: Tensor = self.linear(torch.cat(frames)).float()
        return out


class _Positions(nn.Module):
    """Frequencies of the rotary positions, radians a frame, as transformers keeps them."""

    def __init__(self, head_size: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", torch.empty(head_size // 2))


class _Network(ConformerNetwork):
    def __init__(self, config: MuqConfig) -> None:
        super().__init__()
        self.feature_extractor = StandardMel(
            bands=config.n_mels, n_fft=N_FFT, win_length=N_FFT, hop=config.hop_length
        )
        self.subsampling_module = nn.ModuleList([_Subsampler(config)])
        shape = BlockShape(
            width=config.encoder_dim,
            inner=config.intermediate_size,
            heads=config.num_attention_heads,
            kernel=config.conv_depthwise_kernel_size,
            activation=config.hidden_act,
            batch_norm=True,
            rotates_input=True,
        )
        self.embed_positions = _Positions(shape.width // shape.heads)
        self.layers = nn.ModuleList(Block(shape) for _ in range(config.encoder_depth))
        self.layer_norm = nn.LayerNorm(shape.width, eps=config.layer_norm_eps)

    def frequencies(self, device: torch.device) -> Tensor:
        return self.embed_positions.get_buffer("inv_freq").to(device)


class MuqEncoder(ConformerEncoder):
    """MuQ or MusicFM of any shape; an `Encoder`.

    The last state has passed the network's final layer norm.

    Parameters
    ----------
    config : MuqConfig
        Shape of the network.
    name : str
        Hub name or folder, as given.
    revision : str, optional
        Commit of the hub's repository.

    Attributes
    ----------
    context_seconds : float
        Longest window that the network was trained with.

    Examples
    --------
    >>> from featurestore.models import MuqEncoder, save_random_checkpoint
    >>> model = load_model(save_random_checkpoint("random", shape="muq-tiny"))
    >>> isinstance(model, MuqEncoder), model.layers, model.frames(30 * 24_000)
    (True, 3, 750)
    """

    def __init__(self, config: MuqConfig, *, name: str = "", revision: str | None = None) -> None:
        super().__init__(
            _Network(config),
            dim=config.encoder_dim,
            # A window is extended by its reflection, half a spectrum long, and has to give one spectrum.
            min_samples=max(N_FFT // 2 + 1, config.hop_length),
            context_seconds=CONTEXT_SECONDS,
            sample_rate=SAMPLE_RATE,
            name=name,
            revision=revision,
        )
        self.config = config

    def _frames(self, n_samples: int) -> int:
        frames = n_samples // self.config.hop_length
        for stride in self.config.strides:
            frames = -(-frames // stride)
        return frames
