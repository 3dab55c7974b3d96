from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import interpretune as it


class Steps(it.ProfilerHooksMixin):
    def __init__(self, asked):
        self.it_cfg = SimpleNamespace(profile_memory=asked)

    @it.ProfilerHooksMixin.memprofilable
    def training_step(self, fails=False):
        with self.memory_phase("forward"):
            if fails:
                raise ArithmeticError
        return "loss"

    @it.ProfilerHooksMixin.memprofilable
    def test_step(self):
        return "answer"


def calls(module):
    return [(item["step"], item["phase"], item["call"]) for item in module.step_profile]


def test_all_steps_and_phases_are_recorded_where_it_is_asked():
    module = Steps(True)
    assert (module.training_step(), module.test_step()) == ("loss", "answer")
    assert calls(module) == [("training_step", "forward", 0), ("training_step", "", 0), ("test_step", "", 0)]
    part, whole = module.step_profile[:2]
    assert 0 <= part["seconds"] <= whole["seconds"]
    assert whole["peak_bytes"] >= whole["resident_bytes"] * 0.5 > 0


def test_nothing_is_recorded_where_it_is_not_asked():
    module = Steps(False)
    module.training_step()
    assert not hasattr(module, "step_profile")


def test_a_schedule_chooses_calls_and_writes_them(tmp_path):
    file = tmp_path / "memory.jsonl"
    module = Steps(it.MemoryProfileCfg(steps=["training_step"], warmup=2, every=3, at_most=2, file=file))
    for _ in range(12):
        module.training_step()
        module.test_step()
    assert [item["call"] for item in module.step_profile if not item["phase"]] == [2, 5]
    assert [json.loads(line) for line in file.read_text().splitlines()] == module.step_profile
    figure = it.plot_memory_profile(file)
    assert {trace.name: list(trace.x) for trace in figure.data} == {
        "training_step, forward: process": [2, 5],
        "training_step: process": [2, 5],
    }


def test_a_step_that_fails_is_recorded_and_the_next_one_is_sound():
    module = Steps(True)
    with pytest.raises(ArithmeticError):
        module.training_step(fails=True)
    module.training_step()
    assert calls(module) == [("training_step", phase, call) for call in (0, 1) for phase in ("forward", "")]


def test_a_damaged_file_says_where(tmp_path):
    file = tmp_path / "memory.jsonl"
    file.write_text('{"step": "a"}\n')
    with pytest.raises(it.DataError, match="line 1: this is no record of a step, which has call"):
        it.plot_memory_profile(file)
    file.write_text('{"step": ')
    with pytest.raises(it.DataError, match="line 1: .* as JSON in each line"):
        it.plot_memory_profile(file)
