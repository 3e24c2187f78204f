"""The end of a training that has no numbers any more: which windows it was at."""

from __future__ import annotations

from collections.abc import Sequence

from featurestore.errors import TrainingError
from featurestore.training.pretrain.corpus import Corpus
from featurestore.training.pretrain.metrics import METRICS, Metrics
from featurestore.training.pretrain.plan import Window

_SHOWN_WINDOWS = 16


def diverged(what: str, step: int, windows: Sequence[Window], corpus: Corpus, metrics: Metrics) -> TrainingError:
    """The error to raise, after all windows of the step were written into the metrics.

    Parameters
    ----------
    what : {"loss", "gradient"}
        Is no number.
    step : int
        Steps that are done.
    windows : sequence of Window
        Of the step.
    corpus : Corpus
        Names their files.
    metrics : Metrics
        Gets them.
    """
    layout = corpus.layout
    places = [
        {"file": corpus.entries[x.file].path, "seconds": x.frame * layout.hop / layout.rate} for x in windows
    ]
    metrics.write({"step": step + 1, "diverged": places})
    shown = ", ".join(f"{x['file']} at {x['seconds']:.2f} s" for x in places[:_SHOWN_WINDOWS])
    if len(places) > _SHOWN_WINDOWS:
        shown += f" and {len(places) - _SHOWN_WINDOWS} more (all are in {METRICS})"
    return TrainingError(
        f"the {what} of step {step + 1} is no number any more; its windows are {shown}. "
        "Lower optimizer.lr, or look at these files; checkpoints of before are whole"
    )
