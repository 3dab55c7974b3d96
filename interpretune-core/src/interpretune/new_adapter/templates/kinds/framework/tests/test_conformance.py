"""The adapter keeps every rule of the contract, and does what it is for."""

import interpretune as it
import pytest

from interpretune_adaptername.conformance import AdapterNameConformance

SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}


class TestAdapterName(AdapterNameConformance):
    @pytest.fixture
    def session(self, conformance_bench):
        session = conformance_bench.new_session(optimizer_init=SGD)
        yield session
        it.it_session_end(**session)

    def test_training_moves_the_weights(self, session):
        before = [parameter.detach().clone() for parameter in session.module.parameters()]
        result = it.fit(**session, loop_cfg=it.LoopConfig(max_epochs=2, progress=False))
        assert result.global_step == 2 * len(session.datamodule.train_dataloader())
        assert session.module.current_epoch == 1
        assert any((old != new).any() for old, new in zip(before, session.module.parameters(), strict=True))

    def test_steps_can_be_limited(self, session):
        assert it.fit(**session, loop_cfg=it.LoopConfig(max_epochs=-1, max_steps=3, progress=False)).global_step == 3

    def test_what_the_trainer_cannot_do_is_refused(self, session, tmp_path, monkeypatch):
        with pytest.raises(it.ConfigurationError, match=r"does not know LoopConfig\(run_dir\) yet"):
            it.fit(**session, loop_cfg=it.LoopConfig(run_dir=tmp_path))
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(it.ConfigurationError, match="trains in one process"):
            it.fit(**session)
