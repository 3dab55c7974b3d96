"""How much memory is taken and free, on a device and in this process."""

from __future__ import annotations

import psutil
import torch
from attrs import frozen
from rich.filesize import decimal


@frozen(repr=False)
class MemoryStatus:
    """Bytes on a device and in this process.

    Attributes:
        device: Of which device.
        allocated: Taken by tensors; None where nobody counts them, as on the CPU.
        reserved: Kept by torch for tensors, those included; None likewise.
        free: What another tensor can have: of the device, or of the machine.
        total: What there is of it.
        resident: Of this process, in the machine's memory.
    """

    device: str
    allocated: int | None
    reserved: int | None
    free: int
    total: int
    resident: int

    def __repr__(self) -> str:
        parts = [("allocated", self.allocated), ("reserved", self.reserved), ("free", self.free)]
        told = ", ".join(f"{name} {decimal(value)}" for name, value in parts if value is not None)
        return f"{self.device}: {told} of {decimal(self.total)}; this process has {decimal(self.resident)}"


def memory_status(device: str | torch.device | None = None) -> MemoryStatus:
    """Allocated, reserved and free memory of a device, and the resident memory of this process.

    Args:
        device: The device; None: CUDA's current one where there is one, else the CPU.

    Returns:
        Its ``repr`` is one line. On CUDA ``free`` is what the device has free and what torch has reserved without
        using it; on the CPU and elsewhere, what the machine has available.
    """
    asked = torch.device(device) if device is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    resident, machine = psutil.Process().memory_info().rss, psutil.virtual_memory()
    if asked.type == "cuda":
        allocated, reserved = torch.cuda.memory_allocated(asked), torch.cuda.memory_reserved(asked)
        free, total = torch.cuda.mem_get_info(asked)
        return MemoryStatus(str(asked), allocated, reserved, free + reserved - allocated, total, resident)
    if asked.type == "mps":
        allocated, reserved = torch.mps.current_allocated_memory(), torch.mps.driver_allocated_memory()
        return MemoryStatus(str(asked), allocated, reserved, machine.available, machine.total, resident)
    return MemoryStatus(str(asked), None, None, machine.available, machine.total, resident)
