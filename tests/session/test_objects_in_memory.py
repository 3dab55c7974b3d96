"""Adapters, tokenizers, models and rows as objects, and sessions as blocks: what a notebook writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import interpretune as it
from interpretune.analysis import AnalysisCfg, AnalysisRunner, run_analysis
from tests.sessions import STACKS, make_session, stack_options
from tests.tiny import tiny_gpt2, tiny_tokenizer


class Louder:
    """Scales logits by a factor."""

    declaration = it.AdapterDeclaration(name="louder", level="extension", contract="1.0")

    def __init__(self, factor: float, ended: list[str] | None = None) -> None:
        self.factor, self.ended = factor, [] if ended is None else ended

    @it.hookimpl(wrapper=True)
    def it_forward(self, module: Any, batch: Any) -> Any:
        output = yield
        output.logits = self.factor * output.logits
        return output

    @it.hookimpl
    def it_end_session(self, module: Any, datamodule: Any) -> None:
        self.ended.append("ended")


def logits(session: it.ITSession) -> torch.Tensor:
    batch = session.module.batch_to_device(dict(next(iter(session.datamodule.test_dataloader()))))
    batch.pop("labels")
    found: torch.Tensor = session.module(**batch).logits
    return found


def test_an_object_is_stacked_and_two_of_one_name_do_not_see_each_other(tmp_path: Path) -> None:
    plain, twice, thrice = (
        make_session(tmp_path, adapters=adapters)
        for adapters in (("core",), ("core", Louder(2.0)), (Louder(3.0), "core"))
    )
    assert twice.context.names == ("core", "louder")
    assert "louder" in str(twice.context)
    assert "in memory" in str(twice.context)
    for session, factor in ((twice, 2.0), (thrice, 3.0)):
        torch.testing.assert_close(logits(session), factor * logits(plain))


def test_keys_of_results_know_the_object(tmp_path: Path) -> None:
    def key(factor: float) -> str:
        session = make_session(tmp_path, adapters=(Louder(factor),))
        store = AnalysisRunner(**session, root=tmp_path / "out", limit=1).run({"clean": "clean_no_sae"})["clean"]
        return str(store.manifest.key)

    assert key(2.0) == key(2.0)
    assert key(2.0) != key(3.0)


def test_an_adapter_that_is_installed_may_be_given_as_the_object_it_is(tmp_path: Path) -> None:
    from interpretune.adapters.core import adapter

    assert make_session(tmp_path, adapters=(adapter, "core"), init=False).context.names == ("core",)


class CalledCore(Louder):
    declaration = it.AdapterDeclaration(name="core", level="extension", contract="1.0")


@pytest.mark.parametrize(
    ("adapters", "error", "said"),
    [
        ((Louder(1.0), Louder(2.0)), it.DuplicateAdapterError, "Declare another name"),
        ((CalledCore(1.0),), it.DuplicateAdapterError, "CalledCore, has the name of 'core' (interpretune-core"),
        ((Louder,), it.AdapterSignatureError, "the class Louder"),
        ((3,), it.AdapterSignatureError, "neither the name of an adapter nor an adapter"),
    ],
)
def test_what_cannot_be_stacked_is_refused(
    adapters: tuple[Any, ...], error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as raised:
        make_session(tmp_path, adapters=adapters, init=False)
    assert said in str(raised.value)


def test_a_block_initialises_a_session_and_ends_it(tmp_path: Path) -> None:
    ended: list[str] = []
    with make_session(tmp_path, adapters=(Louder(1.0, ended),), init=False) as session:
        assert session.module.initialised
        assert run_analysis(**session, analysis_cfg=AnalysisCfg(mode="clean_no_sae"), limit_batches=1).logit_diffs
        assert not ended
    assert ended == ["ended"]
    assert not session.module.initialised
    with session:  # it may be entered again, and one that is initialised stays so
        optimizers = session.module.optimizers_and_schedulers
        with session:
            assert session.module.optimizers_and_schedulers is optimizers
    with pytest.raises(RuntimeError, match="of the block"), session:
        raise RuntimeError("of the block")
    assert not session.module.initialised


@pytest.mark.parametrize("stack", STACKS)
def test_tokenizer_model_and_rows_need_no_files(stack: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token, tokenizer.model_input_names = None, ["input_ids"]
    rows = [{"prompt": "the cat sat", "answers": [" Yes", " No"]}, {"prompt": "a dog", "answers": [" Yes", " No"]}]
    names, settings = stack_options(stack)
    sessions = [
        it.ITSession(
            it.ITSessionConfig(
                adapter_ctx=names,
                shared_cfg=it.ITSharedConfig(tokenizer=tokenizer, cache_dir=tmp_path / "cache"),
                datamodule_cfg=it.ITDataModuleConfig(rows=rows, correct=0),
                module_cfg=it.ITConfig(hf_model=tiny_gpt2(), device="cpu", **settings),
            )
        )
        for _ in range(2)
    ]
    found = []
    for session in sessions:
        it.it_init(**session)
        found.append(run_analysis(**session, analysis_cfg=AnalysisCfg(mode="clean_no_sae")).logit_diffs)
        assert session.datamodule.tokenizer.pad_token is not None
    torch.testing.assert_close(*found)
    with torch.no_grad():
        logits = tiny_gpt2().eval()(torch.tensor([tokenizer.encode(rows[0]["prompt"])])).logits[0, -1]
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No"))
    torch.testing.assert_close(torch.cat(found[0])[0], logits[yes] - logits[no], atol=1e-4, rtol=0)
    assert tokenizer.pad_token is None
    assert tokenizer.model_input_names == ["input_ids"]
    assert sessions[0].datamodule.itdm_cfg.dataset_path == sessions[1].datamodule.itdm_cfg.dataset_path


def test_a_tokenizer_beside_the_name_of_another_is_refused() -> None:
    cfg = it.ITSharedConfig(tokenizer=tiny_tokenizer(), tokenizer_name="gpt2")
    with pytest.raises(it.ConfigurationError, match="one in memory .*which is given beside tokenizer_name"):
        it.load_tokenizer(cfg)
