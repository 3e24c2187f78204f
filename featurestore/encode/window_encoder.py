"""WindowEncoder: a model, a device and windows, from samples to features. It knows no file and no store."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from featurestore.encode.batch_size import T, Window
from featurestore.encode.batching import BatchEncoder, EncodedBatch, EncodedState
from featurestore.encode.card import try_out
from featurestore.encode.device import default_batch_size, resolve_device, resolve_precision
from featurestore.encode.memory import first_line, is_out_of_memory
from featurestore.encode.track_windows import TrackWindows
from featurestore.errors import DeviceError, SettingError
from featurestore.models.checkpoints.load import load_model
from featurestore.models.encoder import Encoder, frame_rate, require_encoder
from featurestore.models.kernels.engine import bf16_for_cpu, optimize_for_cpu
from featurestore.models.kernels.fidelity import Fidelity
from featurestore.models.kernels.half import HALF, to_half
from featurestore.spec import FeatureSpec, check_count, is_whole
from featurestore.windows import AUTO, check_windows


class WindowEncoder:
    """Computes hidden states of a model from samples, window by window.

    Parameters
    ----------
    model : str, path or Encoder
        A hub name or local folder, as for `featurestore.load_model`, or a model of your own.
    revision : str, optional
        Branch, tag or commit of a model of the hub.
    device : str
        "cpu", "cuda", "cuda:N", "mps", or "auto": the first that exists of cuda, mps, cpu.
    batch_size : int, optional
        Windows that are encoded together; by default 4 on the CPU (at least one by each core), 8 on mps, 16 to 128
        on cuda, by its memory.
    mixed_precision : bool
        Half precision on cuda, unless `precision` says something else; False is another way to say "fp32".
    oom_recovery : bool
        Halve a batch that does not fit into memory, down to 1, and try larger ones again later.
    segment_duration : float, "auto" or "full"
        Length of a window, seconds; "auto" is the length that the model was trained with. "full" is one window for
        each track, of its own length, or where a model hears less at once, the fewest equal windows that cover it.
    overlap : float, optional
        Share of a window that the next one repeats, in [0, 1). By default 0.5 for windows of 5 s, as MERT v0 and
        v1 want, and of a given length; 0 for "full" and for an "auto" of more than 5 s.
    layers : sequence of int, optional
        Hidden states to keep, by default all. Features have them in ascending order, and layers beyond the
        last one are not computed.
    precision : {"fp32", "fp16", "bf16", "auto"}, optional
        Arithmetic of the model: fp16 is for cuda, and the default there, bf16 for cards and processors that have
        it. "auto" is bf16 on such a processor, fp16 on cuda, or else fp32.

    Attributes
    ----------
    model : Encoder
    device : torch.device
    layers : tuple of int
        Hidden states that are kept, ascending.
    precision : {"fp32", "fp16", "bf16"}
        Arithmetic of the model.
    batch_size : int
        Windows that are encoded together by now, after halvings.

    Raises
    ------
    SettingError
        If a setting is impossible; says what it may be.
    DeviceError
        If the device is not on this machine or not for this torch, or has no memory left for the model.
    ModelError
        If the model cannot be loaded, or has an attribute that cannot be.

    Notes
    -----
    An encoder is for one thread at a time.

    Examples
    --------
    >>> from featurestore.encode import WindowEncoder
    >>> encoder = WindowEncoder(model="mini", layers=[4])
    >>> samples = load_audio("music/rock/song.wav", encoder.model.sample_rate)
    >>> np.concatenate([batch.segments for batch in encoder.encode([samples], raw=False)]).shape
    (4, 1, 192)
    """

    def __init__(
        self,
        *,
        model: str | os.PathLike[str] | Encoder = "m-a-p/MERT-v1-95M",
        revision: str | None = None,
        device: str | torch.device = "cpu",
        batch_size: int | None = None,
        mixed_precision: bool = True,
        oom_recovery: bool = True,
        segment_duration: float | str = AUTO,
        overlap: float | None = None,
        layers: Sequence[int] | None = None,
        precision: str | None = None,
    ) -> None:
        # What costs nothing to refuse comes before the model is loaded.
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, mixed_precision=mixed_precision, device=self.device)
        if batch_size is not None:
            check_count("batch_size", batch_size)
        check_windows(segment_duration, overlap)
        if isinstance(model, str | os.PathLike):
            model = load_model(model, revision=revision)
        elif revision is not None:
            raise SettingError(f"`revision` {revision!r} is for models of the hub, not for one that is loaded")
        require_encoder(model)
        self.layers = _checked_layers(layers, model)
        self._windows = windows = TrackWindows(model, segment_duration, overlap)
        if batch_size is None:
            batch_size = 1 if windows.are_long else default_batch_size(self.device)
        self._frame_rate = frame_rate(model, windows.window)
        half = HALF.get(self.precision)
        self._fidelity: Fidelity | None = None
        try:
            self.model = network = model.to(self.device)
            if self.device.type != "cpu":
                network = network if half is None else to_half(network, half)
            elif half is None:
                network = optimize_for_cpu(self.model, spare_memory=windows.are_long)
            else:
                network, self._fidelity = bf16_for_cpu(self.model)
            is_arranged = self.device.type == "cpu" and network is not self.model
            if self.device.type == "cuda":
                self._fidelity = try_out(self.model, None if half is None else network, self.device, half)
                self.model = network  # weights in float32 that it does not need leave the card
        except Exception as error:
            if is_out_of_memory(error):
                raise _no_room(self.device, model, error) from error
            raise
        self._encoder = BatchEncoder(
            model=network,
            device=self.device,
            batch_size=int(batch_size),
            layers=self.layers,
            half=None if is_arranged else half,
            oom_recovery=oom_recovery,
            # Long windows are encoded one by one, each with all cores: every one more at a time needs its memory.
            workers=torch.get_num_threads() if is_arranged and not windows.are_long else 1,
        )

    @property
    def batch_size(self) -> int:
        """Windows that are encoded together by now, after halvings."""
        return self._encoder.batch_size

    def spec(self, dtype: str = "float32", codec: str = "none") -> FeatureSpec:
        """Return everything that identifies this encoder's features in a store of this dtype and codec.

        Examples
        --------
        >>> from featurestore.encode import WindowEncoder
        >>> spec = WindowEncoder(model="mini", layers=[4]).spec(dtype="float16")
        >>> spec.model, spec.layers, spec.dim, spec.precision, spec.dtype
        ('mini', (4,), 192, 'fp32', 'float16')
        """
        from featurestore.audio import RESAMPLER

        found = self._fidelity
        return FeatureSpec(
            layers=self.layers,
            dim=self.model.dim,
            model=self.model.name,
            revision=self.model.revision,
            weights_sha256=self.model.weights_sha256,
            sample_rate=self.model.sample_rate,
            do_normalize=self.model.do_normalize,
            frame_rate=self._frame_rate,
            segment_duration=self._windows.segment_duration,
            overlap=self._windows.overlap,
            resampler=RESAMPLER,
            precision=self.precision,
            dtype=dtype,
            codec=codec,
            precision_cosines=None if found is None else tuple(found.cosines[layer] for layer in self.layers),
            precision_errors=None if found is None else tuple(found.errors[layer] for layer in self.layers),
        )

    def encode(self, blocks: Iterable[npt.NDArray[np.float32]], *, raw: bool) -> Iterator[EncodedBatch]:
        """Compute the features of a track as a stream; memory is bounded by a batch.

        Parameters
        ----------
        blocks : iterable of ndarray of float32, shape (samples,)
            The track, mono at `model.sample_rate`, in blocks of any lengths.
        raw : bool
            Whether the frames are wanted, besides their means.

        Yields
        ------
        EncodedBatch

        Raises
        ------
        AudioTooShortError
            If the track is too short for a single frame.
        ExtractionError
            If a window does not fit into memory, or features are not finite.
        SettingError
            If the track has no sample at all.

        Examples
        --------
        >>> from featurestore.encode import WindowEncoder
        >>> encoder = WindowEncoder(model="mini", layers=[4])
        >>> samples = load_audio("music/rock/song.wav", encoder.model.sample_rate)
        >>> batches = list(encoder.encode([samples], raw=True))
        >>> batches[0].starts[0], batches[-1].end, batches[0].raw.shape[1:]
        (0.0, 12.0, (1, 374, 192))
        """
        return self._encoder.encode(self.windows(blocks), raw=raw)

    def windows(self, blocks: Iterable[npt.NDArray[np.float32]]) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Cut a track that comes in blocks into windows: the first sample and the samples of each.

        Examples
        --------
        >>> from featurestore.encode import WindowEncoder
        >>> encoder = WindowEncoder(model="mini", layers=[4])
        >>> blocks = [np.zeros(100_000, np.float32), np.zeros(100_000, np.float32)]
        >>> [(first, len(samples)) for first, samples in encoder.windows(blocks)]
        [(0, 120000), (60000, 120000), (80000, 120000)]
        """
        return self._windows.cut(blocks, self.model, self.device)

    def planned(self, n_samples: int) -> tuple[int, int]:
        """Windows of a track of `n_samples` samples, and the frames of all of them.

        Raises
        ------
        ExtractionError
            If a window is as long as the track, and would not fit into memory.

        Examples
        --------
        >>> from featurestore.encode import WindowEncoder
        >>> WindowEncoder(model="mini").planned(200_000)
        (3, 1122)
        """
        return self._windows.count(n_samples, self.model, self.device)

    def encode_tracks(
        self, windows: Iterable[Window[T] | None], *, raw: bool, stream: bool = False, dtype: str = "float32"
    ) -> Generator[tuple[T, EncodedBatch | EncodedState | Exception], None, None]:
        """Compute the features of the windows of many tracks, in batches across their borders.

        Windows and results are as for `BatchEncoder.encode_tracks`; `windows` gives those of a track.

        Examples
        --------
        >>> from featurestore.encode.batch_size import Window
        >>> from featurestore.encode import WindowEncoder
        >>> encoder = WindowEncoder(model="mini", layers=[4])
        >>> second = np.zeros(24_000, np.float32)
        >>> windows = [Window("a", 0, second), Window("a", 12_000, second), Window("b", 0, second)]
        >>> found = encoder.encode_tracks(windows, raw=False)
        >>> [(track, start) for track, batch in found for start in batch.starts]
        [('a', 0.0), ('a', 0.5), ('b', 0.0)]
        """
        return self._encoder.encode_tracks(windows, raw=raw, stream=stream, dtype=dtype)


def _no_room(device: torch.device, model: Encoder, error: Exception) -> DeviceError:
    return DeviceError(
        f"{device} has too little free memory for {model.name}: end what else uses it, or choose another `device` "
        f"or a smaller `model` ({first_line(error)})"
    )


def _checked_layers(layers: Sequence[int] | None, model: Encoder) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(model.layers + 1))
    if not isinstance(layers, Iterable):
        raise SettingError(f"`layers` must be a sequence such as [{layers!r}], not {layers!r}")
    chosen = list(layers)
    if not chosen:
        raise SettingError(f"`layers` is empty; {model.name} has layers 0 to {model.layers}")
    for layer in chosen:
        if not is_whole(layer) or not 0 <= layer <= model.layers:
            raise SettingError(
                f"`layers` has {layer!r}, which does not exist; {model.name} has layers 0 to {model.layers}"
            )
    return tuple(sorted({int(layer) for layer in chosen}))
