"""Machines by their data sheets, and how long a step of decoding takes at least there: the time to read what it touches, or to multiply."""

import dataclasses
import math
from collections.abc import Mapping

from postformer.config import UserError

Real = int | float


@dataclasses.dataclass(frozen=True)
class Device:
    """Bytes a second from its memory, dense bf16 operations a second, bytes of memory, and who says so."""

    bandwidth: float
    operations: float
    memory: float
    source: str


DEVICES: Mapping[str, Device] = {
    "a100": Device(2.039e12, 312e12, 80e9, "NVIDIA A100 80GB SXM data sheet (2022)"),
    "h100": Device(3.35e12, 989.4e12, 80e9, "NVIDIA H100 SXM data sheet (2023)"),
    "h200": Device(4.8e12, 989.4e12, 141e9, "NVIDIA H200 SXM data sheet (2024)"),
    "b200": Device(8.0e12, 2250e12, 180e9, "NVIDIA DGX B200 data sheet (2024), an eighth of its 18 PFLOPS, without sparsity"),
    "mi300x": Device(5.3e12, 1307.4e12, 192e9, "AMD Instinct MI300X data sheet (2023)"),
    "rtx4090": Device(
        1.008e12, 165.2e12, 24e9, "NVIDIA Ada GPU architecture whitepaper (2023), appendix A, with fp32 accumulation"
    ),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """The least seconds of one token in each row of a batch."""

    read_s: float
    multiply_s: float
    fits: bool

    @property
    def seconds(self) -> float:
        """The larger of the two: reading and multiplying at once, both at their peak."""
        return max(self.read_s, self.multiply_s)


def step(device: Device, *, weights: Real, resident: Real, state: Real, operations: Real, batch: int) -> Step:
    """One step: `weights` bytes are read once for all rows, `state` bytes and `operations` are each row's; `resident` bytes of weights
    lie in memory."""
    read = (weights + batch * state) / device.bandwidth
    return Step(read, batch * operations / device.operations, resident + batch * state <= device.memory)


def device(name: str) -> Device:
    """One of DEVICES, or one given as "GB/s:TFLOP/s:GB". Raises UserError."""
    if name in DEVICES:
        return DEVICES[name]
    try:
        bandwidth, operations, memory = (float(part) for part in name.split(":"))
    except ValueError:
        raise UserError(
            f"--device {name}: choose from {', '.join(DEVICES)}, or give GB/s:TFLOP/s:GB such as 50:1.5:32"
        ) from None
    if not 0 < min(bandwidth, operations, memory) <= max(bandwidth, operations, memory) < math.inf:
        raise UserError(f"--device {name}: expected three finite numbers above 0")
    return Device(bandwidth * 1e9, operations * 1e12, memory * 1e9, "as given")
