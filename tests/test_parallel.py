"""Jobs in several processes."""

import multiprocessing
import os
import threading

import pytest

from nnunetv2_conemos.parallel import in_processes


def test_spawned_processes_give_results_in_order():
    assert in_processes(pow, [(2, 3), (3, 2)], 2, "") == [8, 9]


def test_a_killed_process_is_explained(monkeypatch):
    forked = multiprocessing.get_context("fork")  # a spawned process imports torch for seconds
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: forked)
    with pytest.raises(OSError, match="-np"):
        in_processes(os._exit, [(1,), (1,)], 2, "")


def test_a_progress_bar_ends_with_an_error():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        in_processes(divmod, [(1, 0)], 1, "")
    assert threading.active_count() == before, "one that lives on may block the next one"
