"""The training itself: step after step, with checkpoints, evaluations and an end that can be gone on from."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featurestore.errors import TrainingError
from featurestore.models import MertEncoder
from featurestore.training.pretrain import checkpoints, resuming
from featurestore.training.pretrain.batches import Batch, Reader, batches, fixed_batches
from featurestore.training.pretrain.corpus import check_classes, codebook_classes, open_corpus
from featurestore.training.pretrain.cqt import CqtFile, CqtTarget, fill_together
from featurestore.training.pretrain.divergence import diverged
from featurestore.training.pretrain.evaluation import evaluate
from featurestore.training.pretrain.lock import locked
from featurestore.training.pretrain.losses import Counts, losses, term_names
from featurestore.training.pretrain.metrics import METRICS, Metrics
from featurestore.training.pretrain.network import Heads, TrainedEncoder, check_layers, layout_of
from featurestore.training.pretrain.plan import Plan
from featurestore.training.pretrain.processes import Processes, joined
from featurestore.training.pretrain.recipe import Recipe
from featurestore.training.pretrain.report import TrainingProgress, TrainingReport
from featurestore.training.pretrain.stopping import Stop
from featurestore.training.pretrain.updates import Updates

logger = logging.getLogger("featurestore")

CHECKPOINTS, MODEL = "checkpoints", "model"
Probe = Callable[[MertEncoder], Mapping[str, float]]


def pretrain(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    device: str = "cpu",
    progress: Callable[[TrainingProgress], None] | None = None,
    probe: Probe | None = None,
) -> TrainingReport:
    """Train a model, or go on where an earlier call was stopped.

    Started by torchrun, the processes share each step's windows between them; only the first one writes.

    Parameters
    ----------
    recipe : Recipe
        All settings.
    out : path
        Gets ``checkpoints/step-<n>``, ``metrics.jsonl`` and at the end ``model``; `featurestore.load_model` opens
        ``model`` and each checkpoint.
    device : str
        "cpu", "cuda", "cuda:N" or "auto".
    progress : callable, optional
        Is told where the training stands.
    probe : callable, optional
        Is given the encoder at every evaluation, by the first process; what it returns goes into the metrics.

    Returns
    -------
    TrainingReport

    Raises
    ------
    SourceError
        If a manifest or labels are missing or do not fit; names file and line.
    SettingError
        If a setting is impossible, `out` holds a training of another network, or one that is running, or half
        precision is far from float32 on this CPU.
    TrainingError
        If the loss is no number any more; names the windows.

    Examples
    --------
    >>> from featurestore.training.pretrain import load_recipe, pretrain
    >>> run = {"steps": 2, "batch": 2, "valid_windows": 2, "probe": ""}
    >>> changes = {"data": {"folder": "data", "labels": ["km"]}, "heads": [], "run": run}
    >>> report = pretrain(load_recipe("mini", changes), "run")
    >>> report.steps, report.interrupted
    (2, False)
    >>> load_model(report.model).sample_rate
    24000
    """
    with joined(device) as processes:
        stop = Stop()
        # Until it runs there is nothing to save: Ctrl-C ends it at once.
        training = _Training(recipe, Path(out), processes, stop, progress, probe)
        with locked(Path(out), processes), stop:
            return training.run()


class _Training:
    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        processes: Processes,
        stop: Stop,
        progress: Callable[[TrainingProgress], None] | None,
        probe: Probe | None,
    ) -> None:
        self.recipe, self.out, self.processes = recipe, out, processes
        self._stop, self._notify, self._probe = stop, progress or (lambda _: None), probe
        self._begun = time.monotonic()
        torch.manual_seed(recipe.run.seed)
        begin = resuming.begin(recipe, out / CHECKPOINTS, processes.count)
        encoder, self.config = begin.encoder, begin.config
        self.layout = layout_of(encoder, recipe.data.window)
        check_layers(recipe, encoder.layers)
        classes = codebook_classes(recipe)
        self.train = open_corpus("train", recipe, self.layout, classes)
        self.valid = open_corpus("valid", recipe, self.layout, classes)
        check_classes(self.train, self.valid)
        dense = {name: x.shape[1] for name, x in self.train.dense.items()}
        self.encoder = TrainedEncoder(encoder, recipe.dropout, recipe.feature_gradient, begin.mask)
        self.heads = Heads(encoder.dim, recipe, classes, dense)
        if taken := self.heads.take(begin.heads):
            logger.info("heads that the checkpoint has: %s", ", ".join(taken))
        self.encoder.to(processes.device).train()
        self.heads.to(processes.device).train()
        self.per_step = recipe.run.batch * recipe.run.accumulate * processes.count
        self.plan = Plan(self.train, recipe, self.per_step)
        self.cqt: CqtTarget | None = None
        self.metrics = Metrics(out / METRICS if processes.first else None)
        learning = [x for x in (*self.encoder.parameters(), *self.heads.parameters()) if x.requires_grad]
        self.updates = Updates(learning, recipe)
        self.trained = checkpoints.Trained(self.encoder, self.heads, self.updates.optimizer)
        self._half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(recipe.run.precision)
        self.network: Any = torch.compile(self.encoder) if recipe.run.compile else self.encoder
        self.last_loss: float | None = None
        self.last_valid: dict[str, float] = {}

    def run(self) -> TrainingReport:
        first, evaluated = self._resume()
        if self._half is not None and self.processes.device.type == "cpu":
            self.encoder.check_half(self._half)
        total = self.recipe.run.steps
        reader, valid = self._targets()
        step = first
        interrupted = self.processes.any(self._stop.asked)
        # A run that ended between a checkpoint and its evaluation owes it.
        if step and not evaluated and not interrupted and self._evaluates(step):
            self._evaluate(step, valid)
        if step < total and not interrupted:
            stream = batches(
                self.plan,
                reader,
                volume=self.recipe.mixing.volume,
                batch=self.recipe.run.batch,
                parts=self.recipe.run.accumulate,
                rank=self.processes.rank,
                processes=self.processes.count,
                first=step,
                threads=self.recipe.data.threads,
            )
            step, interrupted = self._steps(stream, step, total, valid)
            stream.close()  # type: ignore[attr-defined]
        model = self._export() if step >= total else None
        return TrainingReport(
            out=self.out,
            model=model,
            steps=step,
            total=total,
            resumed_from=first,
            loss=self.last_loss,
            valid=self.last_valid,
            interrupted=interrupted,
            elapsed=time.monotonic() - self._begun,
        )

    def _steps(self, stream: Iterator[list[Batch]], step: int, total: int, valid: list[Batch]) -> tuple[int, bool]:
        """Train from a step on; returns the step that is reached, and whether it was interrupted."""
        run = self.recipe.run
        names = term_names(self.recipe)
        sums, since = torch.zeros(len(names), device=self.processes.device), step
        saved = step
        self.metrics.lap()
        while step < total:
            with self.metrics.clock("reading"):
                parts = next(stream)
            stopping, masked = self._agreed(parts)
            if stopping:
                break
            counts = Counts(self.per_step, self.per_step * self.layout.count, masked)
            sums += self._step(step, parts, counts, names)
            step += 1
            saving = step % run.checkpoint_every == 0 or step == total
            # A line ends with every checkpoint, so that a run that goes on from there writes the same lines.
            if saving or step % run.log_every == 0:
                self._log(step, step - since, names, sums)
                sums, since = torch.zeros_like(sums), step
            if saving:
                with self.metrics.clock("checkpoint"):
                    self._save(step)
                saved = step
            if self._evaluates(step):
                with self.metrics.clock("evaluation"):
                    self._evaluate(step, valid)
        if since != step:
            self._log(step, step - since, names, sums)
        if saved != step:
            self._save(step)
        return step, step < total

    def _step(self, step: int, parts: list[Batch], counts: Counts, names: list[str]) -> Tensor:
        """One update of the weights; returns the terms of the loss of this process's part."""
        recipe, device, gradients = self.recipe, self.processes.device, self.updates.gradients
        # Whatever is dropped depends on the step and the process alone, so that a resumed run drops the same.
        torch.manual_seed(
            int(np.random.SeedSequence((recipe.run.seed, step, self.processes.rank)).generate_state(1)[0])
        )
        gradients.zero_()
        sums = torch.zeros(len(names), device=device)
        loss = torch.zeros((), device=device)
        with self.metrics.clock("model"):
            for batch in parts:
                moved = batch.to(device)
                wave, _ = self.encoder.encoder.prepared(moved.wave, None)
                with self._autocast():
                    states, penalty = self.network(wave, moved.mask, self.encoder.draw_layers())
                total, terms = losses(states, penalty, moved, self.heads, recipe, counts, self.cqt)
                self.updates.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
                loss += total.detach()
                sums += torch.stack([total.detach() if x == "loss" else terms.get(x, loss * 0) for x in names])
            gradients[-1] = loss
            if device.type == "cuda":
                torch.cuda.synchronize()
        with self.metrics.clock("sum"):
            self.processes.sum(gradients)
            if not math.isfinite(float(gradients[-1])):
                raise self._diverged("loss", step)
        with self.metrics.clock("update"):
            if not self.updates.apply(step):
                raise self._diverged("gradient", step)
        return sums

    def _agreed(self, parts: list[Batch]) -> tuple[bool, int]:
        """Whether any process is to stop, and the masked frames of the step."""
        values = torch.tensor([self._stop.asked, sum(len(x.masked) for x in parts)], dtype=torch.int64)
        stopping, masked = self.processes.sum(values.to(self.processes.device)).tolist()
        return bool(stopping), masked

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.processes.device.type, dtype=self._half, enabled=self._half is not None)

    def _diverged(self, what: str, step: int) -> TrainingError:
        return diverged(what, step, self.plan.windows(step), self.train, self.metrics)

    def _log(self, step: int, steps: int, names: list[str], sums: Tensor) -> None:
        values = dict(zip(names, (self.processes.sum(sums) / steps).tolist(), strict=True))
        elapsed, shares = self.metrics.lap()
        self.last_loss = values["loss"]
        rate = self.per_step * steps / elapsed
        self.metrics.write(
            {
                "step": step,
                "epoch": round(step * self.per_step / self.plan.per_epoch, 4),
                **values,
                "lr": self.updates.optimizer.param_groups[0]["lr"],
                "gradient norm": float(self.updates.norm),
                "windows per second": round(rate, 2),
                "shares of time": shares,
            }
        )
        self._notify(
            TrainingProgress(
                stage="training",
                done=step,
                total=self.recipe.run.steps,
                loss=self.last_loss,
                windows_per_second=rate,
            )
        )

    def _evaluates(self, step: int) -> bool:
        return step % self.recipe.run.evaluate_every == 0 or step == self.recipe.run.steps

    def _evaluate(self, step: int, valid: list[Batch]) -> None:
        found = evaluate(self.encoder, self.heads, valid, self.recipe, self.processes, self.cqt)
        if self._probe is not None and self.processes.first:
            self.encoder.eval()
            found |= dict(self._probe(self.encoder.encoder))
            self.encoder.train()
        self.last_valid = found
        self.metrics.write({"step": step, "valid": found})

    def _save(self, step: int) -> None:
        if self.processes.first:
            scalars = {
                "recipe": self.recipe.to_dict(),
                "processes": self.processes.count,
                "scaler": self.updates.scaler.state_dict(),
            }
            checkpoints.save(
                self.out / CHECKPOINTS, step, self.trained, self.config, scalars, self.recipe.run.keep
            )
        self.processes.wait()

    def _resume(self) -> tuple[int, bool]:
        """Take up the newest checkpoint; returns its step, 0 without one, and whether it has been evaluated."""
        with resuming.newest(self.out / CHECKPOINTS) as checkpoint:
            if checkpoint is None:
                self.metrics.rewind(0)
                return 0, False
            scalars = checkpoints.read_scalars(checkpoint)
            changed = resuming.changes(checkpoint, scalars, self.recipe, self.processes.count)
            if changed and self.processes.first:
                logger.warning("going on from %s with other settings: %s", checkpoint.name, ", ".join(changed))
            checkpoints.restore(checkpoint, self.trained)
        if self.updates.scaler.is_enabled() and scalars.get("scaler"):
            self.updates.scaler.load_state_dict(scalars["scaler"])
        step = int(scalars["step"])
        return step, self.processes.any(self.metrics.rewind(step))

    def _targets(self) -> tuple[Reader, list[Batch]]:
        """Compute what is computed once; returns readers of it."""
        settings = self.recipe.cqt
        folder = Path(self.recipe.data.cache or self.recipe.data.folder)
        wanted = bool(settings.masked or settings.everywhere)
        readers = []
        for corpus in (self.train, self.valid):
            values = None
            if wanted and settings.compute == "once":
                file = CqtFile(folder, corpus, settings)
                fill_together(file, self.processes, lambda: self._stop.asked, self._notify)
                values = file.values()
            readers.append(Reader(corpus, values))
        if wanted and settings.compute == "always":
            self.cqt = CqtTarget(settings, self.layout).to(self.processes.device)
        run = self.recipe.run
        plan = Plan(self.valid, self.recipe, 1)
        return readers[0], fixed_batches(self.valid, readers[1], plan, run.valid_windows, run.batch)

    def _export(self) -> Path:
        folder = self.out / MODEL
        if self.processes.first:
            checkpoints.publish(folder, lambda aside: checkpoints.write_model(aside, self.trained, self.config))
        self.processes.wait()
        return folder
