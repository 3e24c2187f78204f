"""How windows get to a card, on a machine without one: streams and events that note what is asked of them."""

import contextlib
import logging

import numpy as np
import pytest
import torch

from featurestore.encode import transfer
from featurestore.encode.transfer import PinnedTransfer, Transfer, transfer_for

CPU = torch.device("cpu")


class Event:
    """An event of a card, which has happened when it is waited for."""

    def __init__(self, blocking=False):
        self.is_blocking, self.waited = blocking, 0

    def record(self, stream):
        stream.events.append(self)

    def synchronize(self):
        self.waited += 1


class Stream:
    """A stream of a card that does all at once."""

    def __init__(self, device=None):
        self.events = []

    def wait_stream(self, other):
        pass


@pytest.fixture
def card(monkeypatch):
    """Has torch.cuda and pinned memory pretended by the CPU; gives the sizes of what is pinned."""
    pinned, empty = [], torch.empty

    def pretended_empty(*shape, pin_memory=False, **options):
        out = empty(*shape, **options)
        pinned.extend([out.numel()] * pin_memory)
        return out

    monkeypatch.setattr(torch, "empty", pretended_empty)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: Stream())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    # The copy of a card is no view, as that of the CPU to itself would be.
    real_to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *a, non_blocking=False: real_to(x, *a).clone())
    return pinned


def windows(count, samples=40, seed=0):
    return list(np.random.default_rng(seed).normal(size=(count, samples)).astype(np.float32))


def test_windows_are_written_into_two_buffers_that_are_used_again(card):
    sender = PinnedTransfer(CPU)
    for seed, count in enumerate([4, 4, 4, 3, 4, 1]):
        sent = windows(count, seed=seed)
        np.testing.assert_array_equal(sender.send(sent), np.stack(sent))
    assert card == [160, 160]
    assert sender.send(windows(5)).shape == (5, 40)
    assert card == [160, 160, 200]


def test_a_buffer_is_not_written_before_it_is_sent(card):
    sender = PinnedTransfer(CPU)
    events = sender._inward.events
    for number in range(5):
        sender.send(windows(2))
        assert [event.waited for event in events] == [1] * max(0, number - 1) + [0] * min(number + 1, 2)


def test_waiting_for_a_card_sleeps(card):
    sender = PinnedTransfer(CPU)
    sender.send(windows(2))
    sender.mark()()
    assert all(event.is_blocking for event in sender._inward.events + sender._outward.events)
    assert sender._outward.events[0].waited == 1


def test_a_result_arrives_in_one_copy(card, monkeypatch):
    sender, copies = PinnedTransfer(CPU), []
    real = torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "copy_", lambda *x, **y: copies.append(len(x[0])) or real(*x, **y))
    result = torch.arange(24.0).view(4, 2, 3)
    into = sender.empty_on_host(4, 2, 3)
    sender.receive(result.swapaxes(0, 1).contiguous().swapaxes(0, 1), into)
    torch.testing.assert_close(into, result)
    assert copies == [4]


def test_where_no_memory_can_be_pinned_copies_are_plain(card, monkeypatch, caplog):
    def refuse(*_, **options):
        raise RuntimeError("CUDA error: operation not supported\nmany more lines")

    assert type(transfer_for(torch.device("cuda:0"))) is PinnedTransfer
    monkeypatch.setattr(torch, "empty", refuse)
    with caplog.at_level(logging.WARNING, "featurestore"):
        assert type(transfer_for(torch.device("cuda:0"))) is Transfer
    assert caplog.messages == [
        "no memory can be pinned (CUDA error: operation not supported): copies to cuda:0 will be slower"
    ]
    assert transfer.logger.name == "featurestore"
