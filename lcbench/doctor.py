"""`lcbench doctor`: what this machine has and lacks."""

from __future__ import annotations

import importlib.util
import os
import shutil
from importlib import metadata
from pathlib import Path

from lcbench.configs import config_directory
from lcbench.engine.machine import memory_bytes, processor
from lcbench.results.table import human_bytes

#: by package, what needs it and how it is installed
OPTIONAL = {
    "wandb": ("logger=wandb", "wandb"),
    "tensorboard": ("logger=tensorboard", "'lcbench[tensorboard]'"),
    "submitit": ("hydra/launcher=slurm", "'lcbench[slurm]'"),
    "ray": ("hydra/launcher=ray", "'lcbench[ray]'"),
    "optuna": ("hydra/sweeper=optuna", "'lcbench[optuna]'"),
}


def report() -> str:
    """A line for each thing found or missing, and what follows from it."""
    lines = [
        f"processor    {processor()}, {os.cpu_count()} cores",
        f"memory       {human_bytes(memory_bytes() or 0)}",
        f"disk         {human_bytes(shutil.disk_usage(Path.cwd()).free)} free here",
        f"config       {config_directory()}",
        f"outputs      {os.environ.get('LCBENCH_OUTPUTS', 'outputs/ of the folder you run in')}",
        *_packages(),
        *_torch(),
        _wandb(),
    ]
    return "\n".join(lines)


def _packages() -> list[str]:
    lines = []
    for package in ("lcbench", "torch", "lightning", "hydra-core", "omegaconf", "numpy", "rich", "pydantic"):
        try:
            lines.append(f"{package:<12} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{package:<12} missing: pip install {package}")
    for package, (use, extra) in OPTIONAL.items():
        there = importlib.util.find_spec(package) is not None
        missing = f"missing: {use} needs it, pip install {extra}"
        lines.append(f"{package:<12} {metadata.version(package) if there else missing}")
    return lines


def _torch() -> list[str]:
    import torch

    lines = [f"threads      {torch.get_num_threads()} for one run (trainer.threads)", f"bf16         {_bf16()}"]
    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        lines += [f"accelerator  {torch.cuda.get_device_name(i)}" for i in devices]
    elif torch.backends.mps.is_available():
        lines.append("accelerator  mps")
    else:
        lines.append("accelerator  none: CPU-size experiments run here, *_paper ones want one")
    return lines


def _bf16() -> str:
    """Whether the processor multiplies bfloat16 itself, as Linux tells it."""
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return "unknown for this processor"
    flags = set(information.read_text().split())
    if flags & {"amx_bf16", "avx512_bf16"}:
        return "in hardware"
    return "emulated"


def _wandb() -> str:
    from lcbench.logger.wandb import configured_key

    return "W&B          " + (
        "a key is configured: runs go online" if configured_key() else "no key: runs stay offline"
    )
