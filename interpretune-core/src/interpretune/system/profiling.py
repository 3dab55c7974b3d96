"""Time and peak memory of steps, on request."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Step = TypeVar("Step", bound=Callable[..., Any])


def peak_memory_bytes() -> int:
    """Highest resident memory of this process so far, in bytes."""
    try:
        import resource
    except ImportError:  # Windows has no such counter
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class ProfilerHooksMixin:
    """Gives modules the decorator ``memprofilable``."""

    @staticmethod
    def memprofilable(step: Step) -> Step:
        """Record seconds and peak bytes of a step in ``module.step_profile`` where ``it_cfg.profile_memory`` is set."""

        @functools.wraps(step)
        def profiled(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.it_cfg.profile_memory:
                return step(self, *args, **kwargs)
            start = time.perf_counter()
            result = step(self, *args, **kwargs)
            record = {
                "step": step.__name__,
                "seconds": time.perf_counter() - start,
                "peak_bytes": peak_memory_bytes(),
                "cuda_peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
            }
            self.__dict__.setdefault("step_profile", []).append(record)
            return result

        return cast("Step", profiled)
