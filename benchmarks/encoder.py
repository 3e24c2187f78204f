"""How fast the engine for CPUs is, beside transformers' HubertModel with the same weights and the machine's peak.

    python -m benchmarks.encoder CHECKPOINT [--parts thread bf16 stages machine start build memory]

thread   CPU time of one thread for a window, and its share of what torch.mm reaches in the same round
bf16     CPU time of one thread in float32 and in bfloat16, beside OpenVINO where that is installed, and how near
         pooled features of rendered music are
stages   where the engine spends it
machine  wall time with all cores: batches dealt to workers, beside one forward pass on all cores
conformer, conformer-machine   the same for MERT-v2, MuQ or MusicFM (--shape mert2-30s), beside the plain network
start, build, memory, song   whole programs, see benchmarks/programs.py

Everything is measured in turns, round by round. CHECKPOINT is a folder, and is made of random weights of the shape
of MERT-v1-95M if it does not exist. CPU time stays meaningful on a busy machine, wall time does not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import HubertModel

from benchmarks import programs
from benchmarks.music import write_pieces
from benchmarks.plain_loop import load_peer
from featurestore.audio import load_audio
from featurestore.encode.batching import BatchEncoder
from featurestore.encode.device import default_batch_size
from featurestore.models import load_model, save_random_checkpoint
from featurestore.models.checkpoints.config import MertConfig
from featurestore.models.conformer import ConformerEncoder
from featurestore.models.kernels.conformers import arrange_conformer
from featurestore.models.kernels.engine import CpuEngine
from featurestore.models.kernels.products import bf16_products
from featurestore.models.mert import MertEncoder

BATCH, SECONDS, MATRIX = 4, 5, 2048
AMX_BARS = {
    "engine in bf16 to plain": 4.5,
    "engine in bf16 to plain under autocast": 2.7,
    "engine in bf16 to OpenVINO": 1.2,
}
Times = dict[str, list[float]]


def flops(config: MertConfig, samples: int, last: int | None = None) -> dict[str, float]:
    """Floating-point operations of the plain forward pass of one window, by stage."""
    frames, channels, counts = samples, 1, {}
    for number, (out, kernel, stride) in enumerate(
        zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    ):
        frames = (frames - kernel) // stride + 1
        counts[f"conv {number}"] = 2.0 * frames * channels * kernel * out
        channels = out
    dim, layers = config.hidden_size, config.num_hidden_layers if last is None else last
    counts["projection"] = 2.0 * frames * channels * dim
    group = dim // config.num_conv_pos_embedding_groups
    counts["positional conv"] = 2.0 * frames * dim * group * config.num_conv_pos_embeddings
    counts["attention"] = layers * (8.0 * frames * dim * dim + 4.0 * frames * frames * dim)
    counts["feed-forward"] = layers * 4.0 * frames * dim * config.intermediate_size
    return counts


def in_turns(
    things: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float], report: bool = True
) -> Times:
    """Seconds of each thing in each round, after one round that does not count."""
    times: Times = {name: [] for name in things}
    for number in range(rounds + 1):
        for name, thing in things.items():
            begin = clock()
            thing()
            if number:
                times[name].append(clock() - begin)
        if number and report:
            print("  round", number, *(f"{name} {values[-1]:.3f} s" for name, values in times.items()), flush=True)
    return times


def ratio(times: Times, slow: str, fast: str) -> float:
    """Median over the rounds of the ratio within a round."""
    return median(a / b for a, b in zip(times[slow], times[fast], strict=True))


@torch.inference_mode()
def plain(peer: HubertModel, wave: torch.Tensor) -> np.ndarray:
    """What the plain loop does with a batch: all hidden states are kept, then averaged."""
    hidden = peer(wave, output_hidden_states=True).hidden_states
    return torch.stack([state.float() for state in hidden], dim=1).numpy().mean(axis=2)


@torch.inference_mode()
def pooled(encoder: CpuEngine | MertEncoder, wave: torch.Tensor, last: int | None = None) -> np.ndarray:
    return torch.stack([state.mean(dim=1) for state in encoder.states(wave, last)], dim=1).numpy()


def thread(folder: Path, rounds: int) -> dict[str, float]:
    """CPU time of one thread."""
    torch.set_num_threads(1)
    peer, _ = load_peer(folder)
    model = load_model(folder)
    assert isinstance(model, MertEncoder)
    engine = CpuEngine(model)
    wave = noise(model)
    wanted, found = plain(peer, wave), pooled(engine, wave)
    ours = default_batch_size(torch.device("cpu"))
    a, b, c = (torch.randn(MATRIX, MATRIX) for _ in range(3))

    def peak() -> None:
        for _ in range(5):
            torch.mm(a, b, out=c)

    things = {
        "peak": peak,
        "plain": partial(plain, peer, wave),
        "engine": lambda: [pooled(engine, part) for part in wave.split(ours)],
        "peak again": peak,
        "layers 7": lambda: [pooled(engine, part, 7) for part in wave.split(ours)],
    }
    times = in_turns(things, rounds, time.thread_time)
    count = BATCH * sum(flops(model.config, wave.shape[1]).values())
    # The peak before and after: the clock of a shared processor changes within a round.
    peaks = [20 * MATRIX**3 / (x + y) for x, y in zip(times["peak"], times["peak again"], strict=True)]

    def share(name: str) -> float:
        return median(count / t / p for t, p in zip(times[name], peaks, strict=True))

    return {
        "peak, GF/s": median(peaks) / 1e9,
        "plain, s per window": median(times["plain"]) / BATCH,
        "engine, s per window": median(times["engine"]) / BATCH,
        "engine, times faster": ratio(times, "plain", "engine"),
        "--layers 7, times faster": ratio(times, "plain", "layers 7"),
        "plain, share of peak": share("plain"),
        "engine, share of peak": share("engine"),
        "largest relative difference": float(np.abs(found - wanted).max() / np.abs(wanted).max()),
    }


def noise(model: MertEncoder) -> torch.Tensor:
    """A batch of windows as a checkpoint's extractor gives them."""
    wave = torch.randn(BATCH, SECONDS * model.sample_rate)
    return (wave - wave.mean(dim=1, keepdim=True)) / wave.std(dim=1, keepdim=True, correction=0)


def openvino(peer: HubertModel, wave: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """The network of the plain loop by OpenVINO in bfloat16, by one thread; nothing where it is not installed."""
    try:
        import openvino as ov
    except ModuleNotFoundError:
        print("  OpenVINO is not installed (pip install openvino): not measured")
        return {}

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.peer = peer

        def forward(self, wave: torch.Tensor) -> torch.Tensor:
            states = self.peer(wave, output_hidden_states=True).hidden_states
            return torch.stack([state.mean(dim=1) for state in states], dim=1)

    model = ov.convert_model(Pooled().eval(), example_input=wave)
    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    compiled = ov.compile_model(model, "CPU", settings)
    return {"openvino": lambda: compiled(wave.numpy())}


def bf16(folder: Path, rounds: int) -> dict[str, float]:
    """CPU time of one thread by precision, and the distance of bfloat16 from float32."""
    torch.set_num_threads(1)
    products = bf16_products()
    if products != "amx_bf16":
        bars = ", ".join(f"{name} {bar}" for name, bar in AMX_BARS.items())
        print(f"  this machine has {products or 'no bf16 products'}, no amx_bf16: no bars of AMX here ({bars})")
    peer, _ = load_peer(folder)
    model = load_model(folder)
    assert isinstance(model, MertEncoder)
    exact, half = CpuEngine(model), CpuEngine(model, torch.bfloat16)
    wave = noise(model)

    def autocast() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            plain(peer, wave)

    things = {
        "plain": partial(plain, peer, wave),
        "autocast": autocast,
        "engine": partial(pooled, exact, wave),
        "bf16": partial(pooled, half, wave),
        **openvino(peer, wave),
    }
    times = in_turns(things, rounds, time.process_time)
    with tempfile.TemporaryDirectory() as scratch:
        pieces = [load_audio(path, model.sample_rate) for path in write_pieces(Path(scratch))]
    n = SECONDS * model.sample_rate
    windows = [torch.from_numpy(piece[:n])[None] for piece in pieces if len(piece) >= n]
    wanted, found = (np.concatenate([pooled(encoder, window) for window in windows]) for encoder in (exact, half))
    wanted, found = wanted - (mean := wanted.mean(axis=0)), found - mean
    cosines = (wanted * found).sum((0, 2)) / np.sqrt((wanted**2).sum((0, 2)) * (found**2).sum((0, 2)))
    return {
        **{f"{name}, s per window": median(values) / BATCH for name, values in times.items()},
        "engine to plain": ratio(times, "plain", "engine"),
        "engine in bf16 to plain": ratio(times, "plain", "bf16"),
        "engine in bf16 to plain under autocast": ratio(times, "autocast", "bf16"),
        **({"engine in bf16 to OpenVINO": ratio(times, "openvino", "bf16")} if "openvino" in times else {}),
        "windows of rendered music": len(windows),
        "least pooled centred cosine of a state": float(cosines.min()),
    }


def stages(folder: Path, rounds: int) -> dict[str, float]:
    """CPU time of one thread by stage and by operation, ms per window, and shares of peak."""
    torch.set_num_threads(1)
    model = load_model(folder)
    assert isinstance(model, MertEncoder)
    engine: Any = CpuEngine(model)
    size = default_batch_size(torch.device("cpu"))
    wave = torch.randn(size, SECONDS * model.sample_rate) * 0.1
    spent: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            begin = time.thread_time()
            result = function(*arguments)
            spent[name] = spent.get(name, 0.0) + time.thread_time() - begin
            return result

        return run

    model.feature_projection.forward = timed("projection", model.feature_projection.forward)  # type: ignore[method-assign]
    convs = engine._convs
    for number, conv in enumerate(convs._others, 1):
        conv.into = timed(f"conv {number}", conv.into)
    engine._convs = timed("all convs", convs)
    engine._position = timed("positional conv", engine._position)
    for block in engine._blocks:
        block._attended = timed("attention", block._attended)
        block._fed_forward = timed("feed-forward", block._fed_forward)
    a, b, c = (torch.randn(MATRIX, MATRIX) for _ in range(3))
    matrix = timed("peak", lambda: torch.mm(a, b, out=c))
    in_turns({"engine": timed("all", partial(pooled, engine, wave)), "peak": matrix}, 1, time.thread_time, False)
    spent.clear()
    for _ in range(rounds):
        pooled_once = timed("all", partial(pooled, engine, wave))
        pooled_once()
        for _ in range(5):
            matrix()
    peak = 5 * rounds * 2 * MATRIX**3 / spent.pop("peak")
    spent["conv 0"] = spent.pop("all convs") - sum(spent[f"conv {n}"] for n in range(1, len(convs._others) + 1))
    total = spent.pop("all") / rounds / size
    print(f"  peak {peak / 1e9:.0f} GF/s; engine {1e3 * total:.0f} ms per window")
    print(f"  {'stage':18} {'GF':>8} {'ms':>8} {'of time':>8} {'of peak':>8}")
    for name, count in flops(model.config, wave.shape[1]).items():
        seconds = spent[name] / rounds / size
        shares = f"{seconds / total:8.1%} {count / seconds / peak:8.1%}"
        print(f"  {name:18} {count / 1e9:8.2f} {1e3 * seconds:8.1f} {shares}")
    rest = total - sum(spent.values()) / rounds / size
    print(f"  {'norms, pooling':18} {'':8} {1e3 * rest:8.1f} {rest / total:8.1%}")
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        pooled(engine, wave)
    rows = sorted(profiled.key_averages(), key=lambda row: -row.self_cpu_time_total)[:12]
    everything = sum(row.self_cpu_time_total for row in profiled.key_averages())
    print("  by operation:", ", ".join(f"{row.key} {row.self_cpu_time_total / everything:.1%}" for row in rows))
    return {name: 1e3 * value / rounds / size for name, value in spent.items()}


def machine(folder: Path, rounds: int) -> dict[str, float]:
    """Wall time with all cores."""
    cores = torch.get_num_threads()
    peer, _ = load_peer(folder)
    model = load_model(folder)
    engine = CpuEngine(model)  # type: ignore[arg-type]
    ours = default_batch_size(torch.device("cpu"))
    windows = torch.randn(4 * BATCH * cores, SECONDS * model.sample_rate)

    def loop() -> None:
        for wave in windows.split(BATCH):
            plain(peer, wave)

    def drain(encoder: BatchEncoder) -> None:
        for _ in encoder.encode(((0, window) for window in windows.numpy()), raw=False):
            pass

    def encoder_of(layers: range | tuple[int, ...]) -> Callable[[], None]:
        encoder = BatchEncoder(
            model=engine, device=torch.device("cpu"), batch_size=ours, layers=tuple(layers), workers=cores
        )
        return partial(drain, encoder)

    things = {"plain": loop, "engine": encoder_of(range(model.layers + 1)), "layers 7": encoder_of((7,))}
    times = in_turns(things, rounds, time.perf_counter)
    return {
        "cores": cores,
        "windows": len(windows),
        "engine, times faster": ratio(times, "plain", "engine"),
        "--layers 7, times faster": ratio(times, "plain", "layers 7"),
    }


def conformers(folder: Path) -> dict[str, ConformerEncoder]:
    """The plain network, and what the library makes of it."""
    model = load_model(folder)
    assert isinstance(model, ConformerEncoder)
    return {"plain": model, "engine": arrange_conformer(model), "bf16": arrange_conformer(model, torch.bfloat16)}


def conformer(folder: Path, rounds: int) -> dict[str, float]:
    """CPU time of one thread for a window of 30 s in a Conformer network."""
    torch.set_num_threads(1)
    encoders = conformers(folder)
    wave = 0.1 * torch.randn(1, 30 * encoders["plain"].sample_rate)
    states: dict[str, np.ndarray] = {}

    @torch.inference_mode()
    def once(name: str, encoder: ConformerEncoder, autocast: bool = False) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            states[name] = torch.stack([state.float() for state in encoder.states(wave)]).numpy()

    things = {name: partial(once, name, encoder) for name, encoder in encoders.items()}
    things["autocast"] = partial(once, "autocast", encoders["plain"], autocast=True)
    times = in_turns(things, rounds, time.thread_time)
    found, wanted = {"plain, s per window": median(times["plain"])}, states.pop("plain")
    for name, values in states.items():
        largest = np.abs(values - wanted).max(axis=(1, 2, 3)) / np.abs(wanted).max(axis=(1, 2, 3))
        found[f"{name}, times faster"] = ratio(times, "plain", name)
        found[f"{name}, largest relative difference"] = float(largest.max())
    return found


def conformer_machine(folder: Path, rounds: int) -> dict[str, float]:
    """Wall time with all cores for windows of 30 s in a Conformer network, one by each core."""
    cores, encoders = torch.get_num_threads(), conformers(folder)
    windows = 0.1 * torch.randn(cores, 30 * encoders["plain"].sample_rate)

    def drain(encoder: ConformerEncoder, workers: int) -> None:
        batches = BatchEncoder(
            model=encoder,
            device=torch.device("cpu"),
            batch_size=workers,
            layers=tuple(range(encoder.layers + 1)),
            workers=workers,
        )
        deque(batches.encode(((0, window) for window in windows.numpy()), raw=False), maxlen=0)

    things = {name: partial(drain, one, 1 if name == "plain" else cores) for name, one in encoders.items()}
    times = in_turns(things, rounds, time.perf_counter)
    return {
        "cores": cores,
        **{f"{name}, times faster": ratio(times, "plain", name) for name in ("engine", "bf16")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--parts", nargs="+", default=["thread", "stages", "machine"])
    parser.add_argument("--shape", default="95m", help="of random weights, if CHECKPOINT does not exist")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--audio", type=Path)
    parser.add_argument("--minutes", nargs="+", type=float, default=[3, 9], help="of the files of part memory")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not arguments.checkpoint.is_dir():
        save_random_checkpoint(arguments.checkpoint, shape=arguments.shape)
    parts: dict[str, Callable[[Path, int], dict[str, float]]] = {
        "thread": thread,
        "bf16": bf16,
        "stages": stages,
        "machine": machine,
        "conformer": conformer,
        "conformer-machine": conformer_machine,
        "start": programs.start,
        "build": partial(programs.build, audio=arguments.audio),
        "memory": lambda folder, _: programs.memory(folder, arguments.minutes),
        "song": lambda folder, _: programs.song(folder, arguments.minutes[-1]),
    }
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    results, cores = {}, torch.get_num_threads()
    for part in arguments.parts:
        torch.set_num_threads(cores)
        print(f"{part} (load of the machine: {os.getloadavg()[0]:.1f})", flush=True)
        results[part] = parts[part](arguments.checkpoint, arguments.rounds)
        for name, value in results[part].items() if part != "stages" else ():
            print(f"  {name}: {value:.3g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
