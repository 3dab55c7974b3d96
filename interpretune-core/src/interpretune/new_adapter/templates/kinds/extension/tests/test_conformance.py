"""The adapter keeps every rule of the contract, and does what it is for."""

import math

import interpretune as it
import pytest
import torch
from interpretune.analysis import AnalysisCfg, AnalysisRunner, plan_of, report_sections

from interpretune_adaptername.conformance import AdapterNameConformance
from interpretune_adaptername.operations import adapter_name_certainty


class TestAdapterName(AdapterNameConformance):
    def test_steps_are_timed_and_reported(self, conformance_bench):
        session = conformance_bench.new_session()
        it.test(**session, loop_cfg=it.LoopConfig(progress=False))
        module, datamodule = session.module, session.datamodule
        batches = len(datamodule.test_dataloader())
        assert module.logged_metrics["test_step_seconds"] > 0
        [section] = report_sections(module)
        assert [(row["step"], row["calls"]) for row in section.rows] == [("test_step", batches)]
        it.it_session_end(**session)

    def test_operation_runs_in_a_plan(self, conformance_bench, tmp_path):
        plan = plan_of(AnalysisCfg(mode="clean_no_sae"), [], [adapter_name_certainty])
        store = AnalysisRunner(**conformance_bench.session, root=tmp_path).run({"certainty": plan})["certainty"]
        found = torch.cat([batch["adapter_name_certainty"] for batch in store.batches()])
        assert len(found) == store.n_examples
        assert ((found >= 0.5) & (found <= 1)).all()  # of two answers


def test_certainty_is_the_probability_of_the_likelier_answer():
    answers = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]])
    assert adapter_name_certainty(answers).tolist() == pytest.approx([0.75, 0.8])
