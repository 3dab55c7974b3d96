"""The rule of logging: whoever takes note of metrics leaves them as they are."""

from __future__ import annotations

from typing import Any

import torch

from interpretune.session.session import it_session_end
from interpretune.testing.rule import expect, rule
from interpretune.testing.workbench import Bench
from interpretune.training.metric_log import MetricLog

VALUES = {"a_loss": 0.123456789, "an_accuracy": 0.5}
OPTIONS = {"batch_size": 3, "on_epoch": True, "prog_bar": True}


@rule(stack=True, after=["results-arrive"])
def metrics_stay_as_logged(bench: Bench) -> None:
    """Logging changes neither the values that were logged, nor the tensors of the user, nor the options of the call."""
    session = bench.new_session()
    module: Any = session.module
    _check_hook(module)
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in VALUES.items()}
    module._it_state.metric_log = log = MetricLog(means_by_default=False)
    for logged, weight in ((tensors["a_loss"], 3), (torch.tensor(1.0), 1)):
        module.log("a_loss", logged, **{**OPTIONS, "batch_size": weight})
    module._it_state.metric_log = None
    wanted = (3 * VALUES["a_loss"] + 1) / 4
    mean = log.take_means().get("a_loss")
    expect(
        mean is not None and abs(mean - wanted) < 1e-6,
        f"a metric that was logged for 3 rows and for 1 row has the mean {mean}",
        f"{wanted:.6f}, weighted by batch_size",
    )
    module.log_dict(tensors, **OPTIONS)
    for name, value in VALUES.items():
        found = float(tensors[name])
        expect(found == value, f"the tensor that was logged as {name} is {found} afterwards", f"{value}, as before")
        kept = module.logged_metrics.get(name)
        expect(kept == value, f"{name} was logged as {value} and is {kept} in logged_metrics", f"{value}")
    it_session_end(**session)


def _check_hook(module: Any) -> None:
    """Call the hook with what it could change, where core hands over copies that are read-only, and look at it."""
    metrics: dict[str, Any] = {name: torch.tensor(value, dtype=torch.float64) for name, value in VALUES.items()}
    metrics["a_number"], options = 2.5, dict(OPTIONS)
    given = dict(metrics)
    module.hook.it_log(module=module, metrics=metrics, options=options)
    expect(options == OPTIONS, f"it_log changed the options {OPTIONS} to {options}", "options left alone")
    same_objects = metrics.keys() == given.keys() and all(metrics[name] is given[name] for name in given)
    expect(same_objects, f"it_log changed the mapping of metrics to {metrics}", "a mapping left alone")
    for name, value in VALUES.items():
        found = float(given[name])
        expect(
            found == value, f"it_log changed {name} in place from {value} to {found}", "tensors left alone: copy them"
        )
