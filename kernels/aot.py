"""Compile every kernel ahead of time, without a GPU, and refuse those that would crawl on one.

python -m kernels.aot [part of a name, see `launches`]      (or: make compile-kernels)
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.chain.spec import CHAIN
from kernels.grid.spec import GRID, GRID_DAGS
from kernels.launch import Launch, noted_launches
from kernels.resolvent.spec import RESOLVENT
from kernels.spectral_conv.spec import DEPTHWISE, SPECTRAL_CONV

ARCHITECTURES = (80, 90)  # A100; H100 and H200
MOST_STACK = 64  # bytes a thread; more means spilled registers
FEWEST_REGISTERS = 16  # a kernel of ours with fewer has lost its work to the stack
MOST_SHARED = {80: 99 * 1024, 90: 227 * 1024}  # bytes a program

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Usage(NamedTuple):
    """What a compiled kernel asks of a multiprocessor: a thread's registers and stack, memory."""

    registers: int
    stack: int
    shared: int

    def fault(self, architecture: int) -> str | None:
        """What is wrong with it, or None."""
        if self.stack > MOST_STACK:
            return f"{self.stack} bytes of stack"
        if self.registers < FEWEST_REGISTERS:
            return f"only {self.registers} registers"
        if self.shared > MOST_SHARED[architecture]:
            return f"{self.shared} bytes of shared memory"
        return None


def compiled(launch: Launch, architecture: int) -> Usage:
    """Compile a noted launch for sm_`architecture`, specialised as a real launch would be."""
    signature, constants, attributes = {}, dict(launch.constants), {}
    values = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
    for number, parameter in enumerate(launch.kernel.params):
        name, plain = parameter.name, parameter.do_not_specialize
        value = values.get(name)
        if name in launch.constants or (not isinstance(value, Tensor) and value == 1 and not plain):
            constants.setdefault(name, value)
            signature[name] = "constexpr"
            continue
        assert value is not None  # what is no constant was given
        signature[name] = TYPES[value.dtype] if isinstance(value, Tensor) else _scalar(value)
        aligned = value.data_ptr() if isinstance(value, Tensor) else value
        if isinstance(aligned, int) and aligned % 16 == 0 and not plain:
            attributes[(number,)] = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes
    )
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    registers, stack = _registers_and_stack(kernel.asm["cubin"])
    return Usage(registers, stack, kernel.metadata.shared)


def _scalar(value: float) -> str:
    if isinstance(value, float):
        return "fp32"
    return "i32" if abs(value) < 2**31 else "i64"


def _registers_and_stack(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run(
            [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    facts = dict(word.split(":") for word in told.split() if word[:4] in ("REG:", "STAC"))
    return int(facts["REG"]), int(facts["STACK"])


def launches(wanted: str = "") -> Iterator[tuple[str, Launch]]:
    """Every kernel of every op on its benchmark inputs, forward and backward, once each.

    Args:
        wanted: part of the name of an op, a benchmark and a dtype, or else of a kernel.
    """
    every = [
        (f"{op.name}, {case}, {dtype}".replace("torch.", ""), op, partial(make, dtype, 0))
        for op in (RESOLVENT, CHAIN, GRID, GRID_DAGS, SPECTRAL_CONV, DEPTHWISE)
        for case, make in op.benchmarks.items()
        for dtype in (torch.float32, torch.bfloat16)
    ]
    chosen = [it for it in every if wanted in it[0]]
    seen = set()
    for where, op, make in chosen or every:
        inputs = make()
        for options in op.gpu_variants.values():
            for noted in _noted(op, inputs, options):
                key = _key(noted)
                if key not in seen and (chosen or wanted in noted.kernel.__name__):
                    seen.add(key)
                    yield where, noted


def _noted(op, inputs: dict, options: dict) -> list[Launch]:
    tensors = op.leaves(inputs)
    with noted_launches() as noted:
        y = op.function(**(inputs | tensors), **options)
        torch.autograd.grad(y, list(tensors.values()), torch.ones_like(y))
    return noted


def _key(noted: Launch) -> tuple:
    def kind(value: object) -> object:
        if isinstance(value, Tensor):
            return value.dtype
        return (type(value), value == 1, isinstance(value, int) and value % 16 == 0)

    constants = tuple(sorted(noted.constants.items()))
    return noted.kernel.__name__, tuple(map(kind, noted.arguments)), constants, noted.num_warps


def main() -> None:
    """Print a line per kernel and architecture; fail if any is at fault."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    faults = []
    for where, noted in launches(wanted):
        for architecture in ARCHITECTURES:
            usage = compiled(noted, architecture)
            fault = usage.fault(architecture)
            constants = " ".join(f"{k}={v}" for k, v in noted.constants.items())
            line = f"{noted.kernel.__name__:<22} sm_{architecture} {usage.registers:>4} registers"
            line += f"{usage.stack:>6} B stack{usage.shared:>8} B shared  {constants}  ({where})"
            print(line + (f"  FAULT: {fault}" if fault else ""), flush=True)
            faults += [line] if fault else []
    if faults:
        raise SystemExit(f"{len(faults)} kernels are at fault.")


if __name__ == "__main__":
    main()
