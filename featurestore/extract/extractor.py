"""FeatureExtractor: a model, a device and windows, from audio to features."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from featurestore.errors import DeviceError, ExtractionError, FeatureStoreError, NotAStoreError, SettingError
from featurestore.extract.batching import BatchEncoder, EncodedBatch, is_out_of_memory
from featurestore.extract.device import default_batch_size, resolve_device, resolve_precision
from featurestore.extract.grouping import T, Window
from featurestore.extract.tracks import Features, gather, publish
from featurestore.models.checkpoints.load import load_model
from featurestore.models.encoder import Encoder, frame_rate, require_encoder
from featurestore.models.kernels.engine import CpuEngine, accelerated
from featurestore.models.kernels.half import HALF, halved
from featurestore.spec import KINDS, FeatureSpec, check_count, is_whole
from featurestore.windows import hop_samples, sliding_windows, window_samples

if TYPE_CHECKING:
    from featurestore.store import StoreWriter


class FeatureExtractor:
    """Extracts hidden states of a model from audio, window by window.

    Parameters
    ----------
    model : str, path or Encoder
        A hub name or local folder, as for `featurestore.load_model`, or a model of your own.
    revision : str, optional
        Branch, tag or commit of a model of the hub.
    device : str
        "cpu", "cuda", "cuda:N", "mps", or "auto": the first that exists of cuda, mps, cpu.
    batch_size : int, optional
        Windows that are encoded together; by default 4 on the CPU (at least one by each core), 8 on mps, 16 on
        cuda.
    mixed_precision : bool
        Half precision on cuda, unless `precision` says something else; False is another way to say "fp32".
    oom_recovery : bool
        Halve a batch that does not fit into memory, down to 1, and try larger ones again later.
    segment_duration : float
        Length of a window, seconds.
    overlap : float
        Share of a window that the next one repeats, in [0, 1).
    layers : sequence of int, optional
        Hidden states to keep, by default all. Features have them in ascending order, and layers beyond the
        last one are not computed.
    precision : {"fp32", "fp16", "bf16"}, optional
        Arithmetic of the model: fp16 is for cuda, and the default there, bf16 for cards that have it.

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
        If the device is not on this machine, or has no memory left for the model.
    ModelError
        If the model cannot be loaded, or has an attribute that cannot be.

    Notes
    -----
    An extractor is for one thread at a time.

    Examples
    --------
    >>> extractor = FeatureExtractor(device="auto", layers=[7])             # doctest: +SKIP
    >>> extractor.extract_track_features("a.flac")["aggregated"].shape      # doctest: +SKIP
    (1, 768)
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
        segment_duration: float = 5.0,
        overlap: float = 0.5,
        layers: Sequence[int] | None = None,
        precision: str | None = None,
    ) -> None:
        # What costs nothing to refuse comes before the model is loaded.
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, mixed_precision=mixed_precision, device=self.device)
        if batch_size is None:
            batch_size = default_batch_size(self.device)
        check_count("batch_size", batch_size)
        hop_samples(window_samples(segment_duration, 1_000_000), overlap)
        if isinstance(model, str | os.PathLike):
            model = load_model(model, revision=revision)
        elif revision is not None:
            raise SettingError(f"revision {revision!r} is for models of the hub, not for one that is loaded")
        require_encoder(model)
        self.layers = _checked_layers(layers, model)
        self._segment_duration, self._overlap = float(segment_duration), float(overlap)
        self._window = window_samples(segment_duration, model.sample_rate)
        self._hop = hop_samples(self._window, overlap)
        if self._window < model.min_samples:
            raise SettingError(
                f"segment_duration {segment_duration} s is {self._window} samples; {model.name} needs at "
                f"least {model.min_samples} ({model.min_samples / model.sample_rate:.4f} s)"
            )
        self._frame_rate = frame_rate(model, self._window)
        half = HALF.get(self.precision)
        try:
            self.model = network = model.to(self.device)
            if half is not None:
                network = halved(network, half)
            elif self.device.type == "cpu":
                network = accelerated(self.model)
        except Exception as error:
            if is_out_of_memory(error):
                raise _no_room(self.device, model, error) from error
            raise
        self._encoder = BatchEncoder(
            model=network,
            device=self.device,
            batch_size=int(batch_size),
            layers=self.layers,
            half=half,
            oom_recovery=oom_recovery,
            workers=torch.get_num_threads() if isinstance(network, CpuEngine) else 1,
        )

    @property
    def batch_size(self) -> int:
        """Windows that are encoded together by now, after halvings."""
        return self._encoder.batch_size

    def spec(self, dtype: str = "float32", codec: str = "none") -> FeatureSpec:
        """Everything that identifies this extractor's features in a store of this dtype and codec."""
        from featurestore.audio import RESAMPLER

        return FeatureSpec(
            layers=self.layers,
            dim=self.model.dim,
            model=self.model.name,
            revision=self.model.revision,
            weights_sha256=self.model.weights_sha256,
            sample_rate=self.model.sample_rate,
            do_normalize=self.model.do_normalize,
            frame_rate=self._frame_rate,
            segment_duration=self._segment_duration,
            overlap=self._overlap,
            resampler=RESAMPLER,
            precision=self.precision,
            dtype=dtype,
            codec=codec,
        )

    def encode(self, blocks: Iterable[npt.NDArray[np.float32]], *, raw: bool) -> Iterator[EncodedBatch]:
        """Features of a track, streamed; memory is bounded by a batch.

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
        """
        return self._encoder.encode(self.windows(blocks), raw=raw)

    def windows(self, blocks: Iterable[npt.NDArray[np.float32]]) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """First samples and samples of the windows of a track that comes in blocks."""
        return sliding_windows(blocks, self._window, self._hop)

    def encode_tracks(
        self, windows: Iterable[Window[T] | None], *, raw: bool
    ) -> Generator[tuple[T, EncodedBatch | Exception], None, None]:
        """Features of the windows of many tracks, in batches across their borders.

        Windows and results are as for `BatchEncoder.encode_tracks`; `windows` gives those of a track.
        """
        return self._encoder.encode_tracks(windows, raw=raw)

    def extract_track_features(
        self,
        audio_path: str | os.PathLike[str],
        store: str | os.PathLike[str] | StoreWriter | None = None,
        track_id: str | None = None,
        dataset: str | None = None,
        skip_existing: bool = True,
        include_raw: bool = True,
        include_segments: bool = True,
    ) -> Features:
        """Features of one file of audio.

        Parameters
        ----------
        audio_path : path
            Any format that `featurestore.load_audio` reads.
        store : path or StoreWriter, optional
            Publish the features there too.
        track_id : str, optional
            By default the name of the file without its suffix.
        dataset : str, optional
            Put before the track id: ``dataset/track_id``.
        skip_existing : bool
            If the store has these kinds of features of this audio, read them instead of computing them.
        include_raw, include_segments : bool
            Which kinds are wanted, besides "aggregated".

        Returns
        -------
        dict of str to ndarray of float32
            "raw" (segments, layers, frames, dim), "segments" (segments, layers, dim): mean over frames, and
            "aggregated" (layers, dim): mean over segments.

        Raises
        ------
        AudioError
            If the file is no usable audio.
        ExtractionError
            If it does not fit into memory, or features are not finite.
        StoreError
            If the store has features of other settings, or cannot be written.
        """
        from featurestore.audio import AudioFile, decode

        path = Path(audio_path)
        track_id = path.stem if track_id is None else track_id
        track = AudioFile(track_id=f"{dataset}/{track_id}" if dataset else track_id, path=path)
        wanted = {"raw": include_raw, "segments": include_segments, "aggregated": True}
        kinds = tuple(kind for kind in KINDS if wanted[kind])
        try:
            if store is None:
                return gather(self.encode(decode(path, self.model.sample_rate), raw=include_raw), kinds)
            if not isinstance(store, str | os.PathLike):
                return publish(self, store, track, kinds, skip_existing=skip_existing)
            from featurestore.store import FeatureStore, StoreWriter
            from featurestore.store.layout import given_path

            store = given_path(store)
            try:
                there = FeatureStore(store).spec
                spec = self.spec(dtype=there.dtype, codec=there.codec)
            except NotAStoreError:
                spec = self.spec()
            with StoreWriter(store, spec=spec) as writer:
                return publish(self, writer, track, kinds, skip_existing=skip_existing)
        except ExtractionError as error:  # an encoder knows windows, not files
            raise ExtractionError(f"{path}: {error}") from error

    def extract_track_features_safe(
        self, audio_path: str | os.PathLike[str], **options: Any
    ) -> tuple[Features | None, FeatureStoreError | None]:
        """`extract_track_features`, but an error of this library is returned instead of raised.

        Returns
        -------
        tuple of (features or None, error or None)
        """
        try:
            return self.extract_track_features(audio_path, **options), None
        except FeatureStoreError as error:
            return None, error

    def extract_dataset_features(
        self,
        audio_dir: str | os.PathLike[str],
        store: str | os.PathLike[str],
        file_pattern: str | None = "*.wav",
        skip_existing: bool = True,
        num_workers: int = 1,
        include_raw: bool = True,
        include_segments: bool = True,
        dataset: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Features of a collection of audio into a store: `featurestore.build` with this extractor.

        Parameters
        ----------
        audio_dir : path
            Folder, file, glob, or list of files.
        store : path
            The store; made if it does not exist.
        file_pattern : str or None
            Only files whose name matches this glob; None for every format.
        skip_existing : bool
            Leave alone what the store has.
        num_workers : int
            Threads that decode ahead.
        include_raw, include_segments : bool
            Which kinds are stored, besides "aggregated"; raw is never stored without segments.
        dataset : str, optional
            Prefix of the track ids.
        **options
            As for `featurestore.build`: dtype, codec, limit, fail_fast, dry_run, id_from, progress.

        Returns
        -------
        dict
            The report: total_files, processed, cached, skipped, failed, errors, elapsed_time and more.
        """
        from featurestore.pipeline import build

        level = "all" if include_raw else "segments" if include_segments else "aggregated"
        report = build(
            audio_dir,
            store,
            extractor=self,
            feature_level=level,
            workers=num_workers,
            force=not skip_existing,
            dataset=dataset,
            file_pattern=file_pattern,
            **options,
        )
        return report.to_dict()


def _no_room(device: torch.device, model: Encoder, error: Exception) -> DeviceError:
    reason = str(error).split("\n", 1)[0]
    return DeviceError(
        f"{device} has too little free memory for {model.name}: end what else uses it, or choose another device "
        f"(device, --device) or a smaller model ({reason})"
    )


def _checked_layers(layers: Sequence[int] | None, model: Encoder) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(model.layers + 1))
    if not isinstance(layers, Iterable):
        raise SettingError(f"layers must be a sequence such as [{layers!r}], not {layers!r}")
    chosen = list(layers)
    if not chosen:
        raise SettingError(f"layers is empty; {model.name} has layers 0 to {model.layers}")
    for layer in chosen:
        if not is_whole(layer) or not 0 <= layer <= model.layers:
            raise SettingError(f"layer {layer!r} does not exist; {model.name} has layers 0 to {model.layers}")
    return tuple(sorted({int(layer) for layer in chosen}))
