"""Where training computes: the CPU, a GPU, or the processes that torchrun started, each with its share of the batches.

Every process holds all weights and takes the same steps: the gradients of their batches are averaged before each one.
One process on a CPU in full precision computes as if none of this were here.
"""

import argparse
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed, nn

from model.batches import Batch
from model.contract.errors import FunnelcastError
from model.reformer import Rows

T = TypeVar("T")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Device:
    """One process's place among all that train one model."""

    at: torch.device
    precision: torch.dtype = torch.float32
    rank: int = 0
    processes: int = 1

    @property
    def leads(self) -> bool:
        """Is this the process that writes and speaks?"""
        return self.rank == 0

    @property
    def identity(self) -> str:
        """Say what a resumed run must share beside settings and data; nothing for one process in full precision."""
        plain = self.processes == 1 and self.precision == torch.float32
        return "" if plain else f"{self.processes} {self.precision}"

    def seed(self, seed: int) -> None:
        """Seed the random numbers of this process, which no other one draws."""
        torch.manual_seed(seed + self.rank * 1_000_000_007)

    def share(self, batches: list[T]) -> list[T]:
        """Return this process's share, as many as every other's; some come again where they do not divide."""
        rounds = -(-len(batches) // self.processes)
        return [batches[(turn * self.processes + self.rank) % len(batches)] for turn in range(rounds)]

    def move(self, batch: Batch) -> Batch:
        """Bring a batch to where the model is."""
        rows, *rest = batch
        return Batch(Rows(*(part.to(self.at) for part in rows)), *(part.to(self.at) for part in rest))

    def cast(self) -> AbstractContextManager[None]:
        """Compute what may be in less than full precision so."""
        return torch.autocast(self.at.type, self.precision, enabled=self.precision != torch.float32)

    def scaler(self) -> torch.amp.GradScaler:
        """Return what keeps small gradients above the least number of fp16; it does nothing in other precisions."""
        return torch.amp.GradScaler(self.at.type, enabled=self.precision == torch.float16)

    def average_gradients(self, model: nn.Module) -> None:
        """Give every process the mean of the gradients of all, in one exchange."""
        if self.processes == 1:
            return
        gradients = [value.grad for value in model.parameters() if value.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.processes
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, mean in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def mean(self, value: float) -> float:
        """Return the mean of a number over all processes."""
        if self.processes == 1:
            return value
        told = torch.tensor(value, dtype=torch.float64, device=self.at)
        distributed.all_reduce(told)
        return float(told) / self.processes

    def agreed(self, value: float) -> float:
        """Return the first process's number to all, so that all decide alike."""
        if self.processes == 1:
            return value
        told = torch.tensor(value, dtype=torch.float64, device=self.at)
        distributed.broadcast(told, 0)
        return float(told)


CPU = Device(torch.device("cpu"))


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where to compute and how exactly."""
    add = parser.add_argument_group("the device; torchrun -m worker.cli train ... uses several").add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one")
    told = "default: on a GPU bf16, or fp16 where it has none, and fp32 on a CPU"
    add("--precision", choices=("auto", *PRECISIONS), default="auto", help=told)


@contextmanager
def joined(device: str, precision: str) -> Iterator[Device]:
    """Join the processes that torchrun started, if it did; all but the first are silent.

    Raises:
        FunnelcastError: no such device here.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise FunnelcastError("found no GPU that torch can use, expected one for --device cuda; give --device cpu")
    kind = "cuda" if has_gpu and device != "cpu" else "cpu"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if kind == "cuda" and local >= torch.cuda.device_count():
        found = f"found {torch.cuda.device_count()} GPUs, expected one for each process of torchrun"
        raise FunnelcastError(f"{found}; give it as many with --nproc-per-node")
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    at = torch.device("cuda", local) if kind == "cuda" else CPU.at
    mine = Device(at, _precision(kind, precision), rank, processes)
    if processes == 1:
        yield mine
        return
    if kind == "cuda":
        torch.cuda.set_device(at)
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        with open(os.devnull, "w") as nowhere, nullcontext() if mine.leads else redirect_stdout(nowhere):
            yield mine
    finally:
        distributed.destroy_process_group()


def _precision(kind: str, asked: str) -> torch.dtype:
    if asked != "auto":
        return PRECISIONS[asked]
    if kind == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
