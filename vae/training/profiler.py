"""Records some steps of a training: a trace for TensorBoard or Perfetto, and a table in the log."""

import logging
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile

from vae.config import RunConfig
from vae.run_dir import profile_path

log = logging.getLogger(__name__)

TABLE_ROWS = 15


class StepProfiler:
    """Records the run's `profile_steps`. Use as a context manager around the steps; call `begin` before each.

    Each rank writes its own trace; rank 0 logs the operations that took longest themselves.
    """

    def __init__(self, run_dir: Path, config: RunConfig, accelerator: Accelerator) -> None:
        self.steps, self.is_main = config.profiled_steps, accelerator.is_main_process
        self.trace = profile_path(run_dir, config.profile_steps, accelerator.process_index)
        self.on_gpu = accelerator.device.type == "cuda"
        self.profile: profile | None = None

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(self, *_: object) -> None:
        self.write()

    def begin(self, step: int) -> None:
        """Note that step `step` (1-based) is about to begin."""
        if step in self.steps and self.profile is None:
            activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * self.on_gpu]
            self.profile = profile(activities=activities)
            self.profile.start()
        elif step not in self.steps:
            self.write()

    def write(self) -> None:
        """End a recording, if there is one, and write down what it holds."""
        if self.profile is None:
            return
        if self.on_gpu:
            torch.cuda.synchronize()  # else the trace ends before what it is about
        self.profile.stop()
        self.trace.parent.mkdir(parents=True, exist_ok=True)
        self.profile.export_chrome_trace(str(self.trace))
        if self.is_main:
            order = "self_cuda_time_total" if self.on_gpu else "self_cpu_time_total"
            table = self.profile.key_averages().table(sort_by=order, row_limit=TABLE_ROWS)
            log.info("the trace of steps %s is in %s\n%s", self.steps, self.trace, table)
        self.profile = None
