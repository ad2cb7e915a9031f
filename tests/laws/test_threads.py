"""Threads: what one process takes for work that it does alone, it gives back."""

import pytest
import torch

from mmtrain import threads


def test_threads_that_paid_for_one_work_are_not_kept_for_the_next(monkeypatch: pytest.MonkeyPatch):
    def two(work: object) -> int:
        torch.set_num_threads(2)
        return 2

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(threads, "calibrate", two)
    try:
        with threads.as_many_as_pay(lambda: None) as count:
            assert (count, torch.get_num_threads()) == (2, 2)
        assert torch.get_num_threads() == 1
        with pytest.raises(ZeroDivisionError), threads.as_many_as_pay(lambda: None):
            1 / 0  # noqa: B018
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
