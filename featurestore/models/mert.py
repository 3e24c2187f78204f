"""MERT in plain torch: a HuBERT network, with the key names of the hub's checkpoints.

All released MERT models (v0, v0-public, v1-95M, v1-330M) are HuBERT networks (Hsu et al. 2021,
arXiv:2106.07447; Li et al. 2023, arXiv:2306.00107); the constant-Q transform, DeepNorm and attention
relaxation of their training play no part in inference.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurestore.models.checkpoints.config import MertConfig
from featurestore.models.encoder import CONTEXT_SECONDS, EncoderModule, check_call
from featurestore.models.frontends import Samples
from featurestore.models.kernels.convolutions import GroupedConv1d


class _SampleConv(nn.Module):
    """One convolution over the samples, with its norm."""

    def __init__(self, config: MertConfig, index: int) -> None:
        super().__init__()
        channels = config.conv_dim[index]
        self.conv = nn.Conv1d(
            config.conv_dim[index - 1] if index else 1,
            channels,
            config.conv_kernel[index],
            config.conv_stride[index],
            bias=config.conv_bias,
        )
        self.layer_norm: nn.Module | None = None
        if config.feat_extract_norm == "layer":
            self.layer_norm = nn.LayerNorm(channels)
        elif index == 0:
            self.layer_norm = nn.GroupNorm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if isinstance(self.layer_norm, nn.LayerNorm):
            x = self.layer_norm(x.transpose(1, 2)).transpose(1, 2)
        elif self.layer_norm is not None:
            x = self.layer_norm(x)
        return F.gelu(x)


class _FeatureExtractor(nn.Module):
    def __init__(self, config: MertConfig) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(_SampleConv(config, i) for i in range(len(config.conv_dim)))

    def forward(self, wave: Tensor) -> Tensor:
        # Always in full precision: in half, quiet audio that is not normalised would lose its bits here.
        with torch.autocast(wave.device.type, enabled=False):
            x: Tensor = self.conv_layers[0](wave[:, None])
        for conv in self.conv_layers[1:]:
            x = conv(x)
        return x.transpose(1, 2)


class _FeatureProjection(nn.Module):
    def __init__(self, config: MertConfig) -> None:
        super().__init__()
        width = config.conv_dim[-1]
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.feat_proj_layer_norm else None
        self.projection = nn.Linear(width, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        # Back to full precision: the residual stream that starts here outgrows half.
        out: Tensor = self.projection(x).float()
        return out


class _PositionalConv(nn.Module):
    def __init__(self, config: MertConfig) -> None:
        super().__init__()
        kernel = config.num_conv_pos_embeddings
        self.conv = GroupedConv1d(
            config.hidden_size,
            config.hidden_size,
            kernel,
            padding=kernel // 2,
            groups=config.num_conv_pos_embedding_groups,
        )

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[1]
        return F.gelu(self.conv(x.transpose(1, 2))[..., :frames]).transpose(1, 2)


class _Attention(nn.Module):
    def __init__(self, config: MertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = 0.0
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        out: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))
        return out


class _FeedForward(nn.Module):
    def __init__(self, config: MertConfig) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.output_dense(self.dropout(F.gelu(self.intermediate_dense(x))))
        return out


class _Layer(nn.Module):
    """One transformer layer. Nothing is dropped unless a training sets the probabilities."""

    def __init__(self, config: MertConfig) -> None:
        super().__init__()
        self.pre_norm = config.do_stable_layer_norm
        self.attention = _Attention(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = _FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.layer_norm(x)))
            out: Tensor = x + self.dropout(self.feed_forward(self.final_layer_norm(x)))
        else:
            x = self.layer_norm(x + self.dropout(self.attention(x)))
            out = self.final_layer_norm(x + self.dropout(self.feed_forward(x)))
        return out


class _Transformer(nn.Module):
    def __init__(self, config: MertConfig) -> None:
        super().__init__()
        self.pos_conv_embed = _PositionalConv(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))


class MertEncoder(EncoderModule):
    """MERT of any released shape; an `Encoder`.

    Parameters
    ----------
    config : MertConfig
        Shape of the network.
    sample_rate : int
        Hz.
    do_normalize : bool
        Whether each window is brought to zero mean and unit variance.
    name, revision, weights_sha256
        As the attributes of `Encoder`.

    Examples
    --------
    >>> from featurestore.models import MertEncoder
    >>> model = load_model("mini")
    >>> isinstance(model, MertEncoder), model.config.num_hidden_layers
    (True, 4)
    """

    def __init__(
        self,
        config: MertConfig,
        *,
        sample_rate: int,
        do_normalize: bool,
        name: str = "",
        revision: str | None = None,
        weights_sha256: str | None = None,
    ) -> None:
        super().__init__(name=name, revision=revision, weights_sha256=weights_sha256)
        self.config = config
        self.sample_rate, self.do_normalize = sample_rate, do_normalize
        self.layers, self.dim = config.num_hidden_layers, config.hidden_size
        self.context_seconds = CONTEXT_SECONDS
        self._frontend = Samples(
            kernels=config.conv_kernel,
            strides=config.conv_stride,
            sample_rate=sample_rate,
            do_normalize=do_normalize,
        )
        self.min_samples = self._frontend.min_samples
        self.feature_extractor = _FeatureExtractor(config)
        self.feature_projection = _FeatureProjection(config)
        self.encoder = _Transformer(config)
        self.eval().requires_grad_(False)

    def frames(self, n_samples: int) -> int:
        """Return the number of frames of a window of `n_samples` samples; 0 if it is shorter than `min_samples`.

        Examples
        --------
        >>> load_model("mini").frames(5 * 24_000)
        374
        """
        return self._frontend.frames(n_samples)

    def prepared(self, wave: Tensor, last: int | None) -> tuple[Tensor, int]:
        """Check the arguments of `states`, and normalise the wave if the model wants it.

        Raises
        ------
        ModelError, SettingError
            As `states`.

        Examples
        --------
        >>> import torch
        >>> wave, last = load_model("mini").prepared(torch.ones(1, 24_000), None)
        >>> wave.shape, last
        (torch.Size([1, 24000]), 4)
        """
        last = check_call(self, wave, last)
        return self._frontend(wave.float()), last

    @torch.no_grad()
    def states(self, wave: Tensor, last: int | None = None) -> Iterator[Tensor]:
        """Yield hidden states 0 to `last`, as `Encoder.states` says; windows do not influence each other.

        State 0 is the input of the first transformer layer, state i the output of layer i. The last one of a
        pre-LN network (330M) has passed the encoder's final layer norm.

        Raises
        ------
        ModelError
            If the weights are not float32.
        SettingError
            If `wave` has another shape or is too short, or there is no state `last`.

        Examples
        --------
        >>> import torch
        >>> states = load_model("mini").states(torch.zeros(2, 24_000), last=3)
        >>> [tuple(state.shape) for state in states]
        [(2, 74, 192), (2, 74, 192), (2, 74, 192), (2, 74, 192)]
        """
        wave, last = self.prepared(wave, last)
        x: Tensor = self.feature_projection(self.feature_extractor(wave))
        x = x + self.encoder.pos_conv_embed(x)
        if not self.config.do_stable_layer_norm:
            x = self.encoder.layer_norm(x)
        yield x
        for number, layer in enumerate(self.encoder.layers[:last], 1):
            x = layer(x)
            if self.config.do_stable_layer_norm and number == self.layers:
                x = self.encoder.layer_norm(x)
            yield x
