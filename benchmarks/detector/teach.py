"""Teach two networks on a GPU while other processes draw their pages, and the smaller one as long as a CPU could."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path

import torch

from benchmarks.detector import crops
from benchmarks.detector.network import WEIGHTS, Net, losses

SHAPES = [  # of what a crop holds
    ((160, 160), torch.uint8),
    ((80, 80), torch.uint8),
    ((80, 80, 2), torch.int8),
    ((40, 40), torch.uint8),
    ((40, 40), torch.uint8),
    ((40, 40, 2), torch.float16),
    ((40, 40), torch.uint8),
]
DRAWN = 24_000  # crops that the short training sees


class Pool:
    """Crops in the GPU's memory, filled from other processes until there are ``most``."""

    def __init__(self, processes: int, most: int) -> None:
        self.most, self.filled = most, 0
        self._crops = [torch.zeros((most, *shape), dtype=kind, device="cuda") for shape, kind in SHAPES]
        self._workers = multiprocessing.get_context("spawn").Pool(processes)
        self._waiting = threading.Semaphore(4 * processes)
        threading.Thread(target=self._feed, daemon=True).start()

    def _feed(self) -> None:
        first = 0
        while self.filled < self.most:
            self._waiting.acquire()
            job = ("data/prepared", 11, first, 40)
            self._workers.apply_async(crops.work, (job,), callback=self._keep, error_callback=print)
            first += 40

    def _keep(self, parts: tuple) -> None:
        self._waiting.release()
        count = min(len(parts[0]), self.most - self.filled)
        for kept, part in zip(self._crops, parts, strict=True):
            kept[self.filled : self.filled + count] = torch.from_numpy(part[:count]).cuda()
        torch.cuda.synchronize()
        self.filled += count

    def sample(self, count: int, limit: int | None = None) -> list:
        """Return a batch of crops, of the first ``limit`` at most."""
        chosen = torch.randint(0, min(self.filled, limit or self.filled), (count,), device="cuda")
        return [kept[chosen] for kept in self._crops]


class Training:
    """A network and its optimizer, whose rate rises for a 25th of the time and falls as a cosine."""

    def __init__(self, seed: int, width: float, rate: float, *, deep: bool) -> None:
        torch.manual_seed(seed)
        self.rate, self.net = rate, Net(width, deep).cuda().to(memory_format=torch.channels_last)
        self._optimizer = torch.optim.AdamW(self.net.parameters(), lr=rate, weight_decay=1e-3, eps=1e-6, fused=True)

    def step(self, done: float, batch: list) -> torch.Tensor:
        """Train on a batch when a share of the time is ``done``; return the losses."""
        warm = min(1, done / 0.04 + 0.02)
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate * warm * (0.5 * (1 + math.cos(math.pi * min(1, done))) * 0.99 + 0.01)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            each = losses(self.net, batch)
        self._optimizer.zero_grad(set_to_none=True)
        (each * torch.tensor(WEIGHTS, device="cuda")).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self._optimizer.step()
        return each.detach()

    def save(self, path: Path) -> None:
        """Write the weights in half precision."""
        torch.save({k: v.half() if v.is_floating_point() else v for k, v in self.net.state_dict().items()}, path)


def main(seconds: float, processes: int, most: int, batch: int, out: Path, steps: int) -> None:
    """Teach S and M for so many seconds, and C for so many steps of 16 among the first crops."""
    torch.backends.cudnn.benchmark = True
    pool, small, large = Pool(processes, most), Training(1, 1.0, 4e-3, deep=False), Training(2, 2.2, 2.5e-3, deep=True)
    while pool.filled < 3000:
        time.sleep(0.5)
    start, number, short = time.time(), 0, None
    while (done := (time.time() - start) / seconds) < 1:
        crops_now = pool.sample(batch)
        means = [each.step(done, crops_now) for each in (small, large)]
        number += 1
        if number % 250 == 0:
            print(f"step {number}, {pool.filled} crops", *(each.cpu().numpy().round(3) for each in means), flush=True)
        if short is None and pool.filled >= DRAWN and done > 0.1:
            short = Training(3, 1.0, 4e-3, deep=False)
            for at in range(steps):
                short.step(at / steps, pool.sample(16, DRAWN))
            short.save(out / "C.pt")
    small.save(out / "S.pt")
    large.save(out / "M.pt")
    os._exit(0)  # whatever the processes still draw


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]), int(sys.argv[6]))
