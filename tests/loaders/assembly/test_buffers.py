from __future__ import annotations

import gc
import threading

import numpy as np
import torch

from patchnpack.loaders.assembly.buffers import BufferPool


def test_memory_is_reused_only_when_nothing_refers_to_it() -> None:
    pool = BufferPool(keep=4)
    loan = pool.acquire((4, 8, 3))
    address = loan.ctypes.data
    holders = [
        loan[1:, 2],
        loan.reshape(-1)[5:6],
        torch.from_numpy(loan)[2],
        torch.from_numpy(loan).flatten().numpy()[::2],
    ]
    del loan
    while holders:
        assert pool.acquire((4, 8, 3)).ctypes.data != address
        holders.pop()
    gc.collect()
    assert address in {pool.acquire((4, 8, 3)).ctypes.data, *(loan.ctypes.data for loan in [pool.acquire((4, 8, 3))])}


def test_two_loans_never_share_memory() -> None:
    pool = BufferPool(keep=2)
    for _ in range(3):
        loans = [pool.acquire((100,)) for _ in range(5)]
        for i, loan in enumerate(loans):
            loan[:] = i
        assert [int(loan.min()) for loan in loans] == [int(loan.max()) for loan in loans] == list(range(5))
        del loans, loan


def test_larger_shape_gets_memory_of_its_size() -> None:
    pool = BufferPool(keep=2)
    small = pool.acquire((2, 3))
    del small
    large = pool.acquire((50, 50))
    large[:] = 1
    assert large.shape == (50, 50)
    assert large.sum() == 2500


def test_at_most_keep_idle_buffers_remain() -> None:
    pool = BufferPool(keep=3)
    loans = [pool.acquire((10,)) for _ in range(20)]
    del loans
    gc.collect()
    assert len(pool._idle) == 3


def test_many_threads_may_acquire() -> None:
    pool, held = BufferPool(keep=2), threading.Barrier(8)
    wrong: list[object] = []

    def work(mark: int) -> None:
        try:
            for _ in range(500):
                loan = pool.acquire((64,))
                loan[:] = mark
                if not (loan == mark).all():
                    wrong.append(mark)
                del loan
            loan = pool.acquire((64,))
            loan[:] = mark
            held.wait(30)  # all threads hold a buffer at once
            if not (loan == mark).all():
                wrong.append(mark)
        except IndexError as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    gc.collect()
    idle = {memory.ctypes.data for memory in pool._idle}
    assert len(idle) == 2, "the buffers of all threads came back, and `keep` of them stay"
    last = pool._idle[-1]
    loan = pool.acquire((64,))
    assert np.shares_memory(loan, last), "a buffer that came back is handed out again"
    assert len(pool._idle) == 1
    assert not np.shares_memory(pool.acquire((65,)), last), "memory in use is not handed out again"
    del loan
    gc.collect()
    assert pool._idle[-1] is last
