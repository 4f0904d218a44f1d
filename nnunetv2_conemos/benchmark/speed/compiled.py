"""What torch.compile did: graphs compiled, and breaks between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import _dynamo

LIMIT = 64  # nnU-Net trains one network in a process, we compile several that share their code


@contextmanager
def unlimited_recompilation() -> Iterator[None]:
    """Forget what was compiled before, and let every arm within the block compile as if it were alone."""
    _dynamo.reset()
    with torch._dynamo.config.patch(cache_size_limit=LIMIT):
        yield


class GraphCounter:
    """Count, over all calls made within it, what torch.compile did: graphs of the first call, breaks, recompilations.

    A recompilation is a graph that a later call compiled.
    """

    def __init__(self) -> None:
        self.graphs = self.breaks = self.recompilations = 0
        self._called = False

    def __enter__(self) -> None:
        self._before = graphs_and_breaks()

    def __exit__(self, *_: object) -> None:
        graphs, breaks = (after - before for after, before in zip(graphs_and_breaks(), self._before, strict=True))
        self.breaks += breaks
        if self._called:
            self.recompilations += graphs
        else:
            self.graphs = graphs
        self._called = True


def graphs_and_breaks() -> tuple[int, int]:
    """Return how many graphs this process has compiled, and how many breaks there were between them."""
    counters = _dynamo.utils.counters
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
