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
    """Count the graphs and the graph breaks of torch.compile within a block."""

    graphs = breaks = 0

    def __enter__(self) -> GraphCounter:
        self._before = self._count()
        return self

    def __exit__(self, *_: object) -> None:
        before, after = self._before, self._count()
        self.graphs, self.breaks = after[0] - before[0], after[1] - before[1]

    @staticmethod
    def _count() -> tuple[int, int]:
        counters = _dynamo.utils.counters
        return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
