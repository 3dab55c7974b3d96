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


class FakeCuda:
    """A counter of CUDA's memory, one for the process."""

    def __init__(self, monkeypatch):
        self.now = self.peak = 0
        for name, value in {
            "is_available": lambda: True,
            "memory_allocated": lambda: self.now,
            "max_memory_allocated": lambda: self.peak,
            "reset_peak_memory_stats": lambda: setattr(self, "peak", self.now),
        }.items():
            monkeypatch.setattr(f"torch.cuda.{name}", value)

    def take(self, n_bytes):
        self.now += n_bytes
        self.peak = max(self.peak, self.now)


def test_steps_at_the_same_time_do_not_hide_each_others_peak(monkeypatch):
    cuda, one, other = FakeCuda(monkeypatch), Steps(True), Steps(True)

    class Outer(Steps):
        @it.ProfilerHooksMixin.memprofilable
        def outer_step(self):
            cuda.take(100)
            cuda.take(-100)
            one.training_step()
            cuda.take(20)
            other.training_step()

    outer = Outer(True)
    outer.outer_step()
    assert outer.step_profile[0]["cuda_peak_bytes"] == 100
    assert [item["cuda_peak_bytes"] for item in one.step_profile] == [0, 0]
    assert [item["cuda_peak_bytes"] for item in other.step_profile] == [20, 20]


def test_a_file_that_cannot_be_written_is_refused_before_the_step(tmp_path):
    module = Steps(it.MemoryProfileCfg(file=tmp_path / "absent" / "memory.jsonl", warmup=3))
    ran = []
    module.memory_phase = lambda _: ran.append(1)
    with pytest.raises(it.ConfigurationError, match=r"absent.*cannot be written: No such file.*Make its folder"):
        module.training_step()
    assert ran == []
