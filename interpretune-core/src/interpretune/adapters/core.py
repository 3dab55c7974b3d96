"""The core adapter: plain PyTorch and Hugging Face models, registered through the same entry points as any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from interpretune.activations.eager import run_eagerly
from interpretune.activations.padding_masks import blind_tokens_attend
from interpretune.analysis.analysis_run import AnalysisRun
from interpretune.backends.hugging_face import HuggingFaceBackend
from interpretune.backends.hugging_face_hook_points import decoder_blocks
from interpretune.latents.latent_model import LatentModel
from interpretune.markers import hookimpl
from interpretune.models.answer_pooling import classification_head, pooled_at_answer
from interpretune.models.batch_keys import check_batch_keys, forward_signature
from interpretune.models.loading import load_hf_model
from interpretune.models.padding import ATTENTION_MASK, mask_of, pad_left, position_ids, tokens_of
from interpretune.operations import Operation, latent_analyses, lenses
from interpretune.plugins.contributions import ClassContribution, OptimizerSetup
from interpretune.plugins.declaration import AdapterDeclaration
from interpretune.session.datamodule import ITDataModule
from interpretune.session.logged_scalars import EPOCH_MEAN
from interpretune.session.module import ITModule
from interpretune.session.optimization import build_optimizers
from interpretune.training.config import LoopConfig, LoopResult
from interpretune.training.evaluation import evaluate
from interpretune.training.fit_loop import FitLoop


class CoreAdapter:
    """Answers every hook that a plain PyTorch session needs, last of all adapters."""

    declaration = AdapterDeclaration(name="core", level="framework", contract="1.0")

    @hookimpl
    def it_contribute_classes(self) -> ClassContribution:
        """The bases of every session."""
        return ClassContribution(adapter="core", module=(ITModule,), datamodule=(ITDataModule,))

    @hookimpl(trylast=True)
    def it_load_model(self, module: ITModule) -> nn.Module:
        """Load a Hugging Face causal model."""
        return load_hf_model(module.it_cfg)

    @hookimpl
    def it_load_latent_models(self, module: ITModule) -> Sequence[LatentModel]:
        """Latent models that the caller made."""
        return list(module.it_cfg.latent_models)

    @hookimpl
    def it_prepare_data(self, datamodule: ITDataModule, module: ITModule) -> None:
        """Prepare the data set unless it is cached."""
        datamodule.prepare_once(module)

    @hookimpl
    def it_setup_datamodule(self, datamodule: ITDataModule, module: ITModule) -> None:
        """Load the prepared data set."""
        datamodule.setup(module=module)

    @hookimpl
    def it_setup_module(self, module: ITModule, datamodule: ITDataModule) -> None:
        """Let the module set itself up."""
        module.setup(datamodule=datamodule)

    @hookimpl(trylast=True)
    def it_configure_optimizers(self, module: ITModule) -> OptimizerSetup | None:
        """Follow ``optimizer_init`` and ``lr_scheduler_init``."""
        return build_optimizers(module, module.it_cfg)

    @hookimpl(trylast=True)
    def it_move_batch(self, module: ITModule, batch: Any) -> Any:
        """Move tensors in mappings and sequences."""
        return _move(batch, module.device)

    @hookimpl(trylast=True)
    def it_forward(self, module: ITModule, batch: Mapping[str, Any]) -> Any:
        """Run a Hugging Face model with positions that count real tokens only."""
        name, tokens = tokens_of(batch)
        if len(tokens) > 1:
            mask_of(batch)  # rows of a batch may be padded, and without their mask the logits would be wrong
        arguments = {**batch, "input_ids": tokens}
        if name != "input_ids":
            arguments.pop(name)
        mask = arguments.get(ATTENTION_MASK)
        if mask is not None and "position_ids" in forward_signature(module.model).named:
            arguments.setdefault("position_ids", position_ids(mask))
        check_batch_keys(module.model, arguments)
        classifies = classification_head(module.model) is not None  # hooks are put on it, which compiled code passes by
        with (
            run_eagerly(module.model) if classifies else nullcontext(),
            _padding_attends(module.model, mask),
            pooled_at_answer(module.model, tokens, mask),
        ):
            return module.model(**arguments)

    @hookimpl(trylast=True)
    def it_generate(self, module: ITModule, batch: Mapping[str, Any], generation_kwargs: Mapping[str, Any]) -> Any:
        """Generate with a Hugging Face model, padding moved to the left."""
        tokens, mask = pad_left(tokens_of(batch)[1], mask_of(batch))
        model: Any = module.model
        with torch.no_grad(), _padding_attends(model, mask):
            return model.generate(
                input_ids=tokens,
                attention_mask=mask,
                **{
                    "pad_token_id": module.require_datamodule().tokenizer.pad_token_id,
                    **generation_kwargs,
                    "return_dict_in_generate": True,
                    "output_logits": True,
                },
            )

    @hookimpl(trylast=True)
    def it_run_step(self, module: ITModule, step_name: str, step: Callable[[], Any]) -> Any:
        """Call the step."""
        return step()

    @hookimpl
    def it_log(self, module: ITModule, metrics: Mapping[str, Tensor | float], options: Mapping[str, Any]) -> None:
        """Keep the latest value of each metric, and hand it to the loop that is running."""
        if options.get(EPOCH_MEAN):
            return
        state = module._it_state
        state.logged_metrics.update(metrics)
        if state.metric_log is not None:
            state.metric_log.record(metrics, batch_size=options.get("batch_size"), on_epoch=options.get("on_epoch"))

    @hookimpl(trylast=True)
    def it_run_loop(self, module: ITModule, datamodule: ITDataModule, loop: str, loop_cfg: LoopConfig) -> LoopResult:
        """Run a loop in plain PyTorch, in this process."""
        if loop == "fit":
            return FitLoop(module, datamodule, loop_cfg).run()
        return evaluate(module, datamodule, loop, loop_cfg)

    @hookimpl(trylast=True)
    def it_create_backend(self, module: ITModule) -> HuggingFaceBackend:
        """The backend of torch forward hooks."""
        model: Any = module.model
        tokenizer = module.datamodule.tokenizer if module.datamodule is not None else None
        return HuggingFaceBackend(model, tokenizer)

    @hookimpl(trylast=True)
    def it_run_analysis(self, analysis: AnalysisRun) -> Mapping[str, Any]:
        """Compute what the plan keeps."""
        return analysis.results()

    @hookimpl
    def it_contribute_operations(self) -> list[Operation]:
        """The operations that the four modes are composed of."""
        return [value for value in (vars(latent_analyses) | vars(lenses)).values() if isinstance(value, Operation)]

    @hookimpl
    def it_end_session(self, module: ITModule) -> None:
        """Drop the backend and the optimizers."""
        module._it_state.initialised = False
        module._it_state.backend = None
        module._it_state.optimizers = None


def _padding_attends(model: Any, mask: Tensor | None) -> AbstractContextManager[None]:
    """``blind_tokens_attend`` for any Hugging Face model, one with a classification head too."""

    def blocks() -> Sequence[nn.Module]:
        found = decoder_blocks(model) if hasattr(getattr(model, "config", None), "get_text_config") else None
        return () if found is None else found[1]  # type: ignore[return-value]  # a ModuleList is a sequence

    return nullcontext() if mask is None else blind_tokens_attend(model, blocks, mask)


def _move(value: Any, device: torch.device) -> Any:
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, Mapping):
        return type(value)({name: _move(item, device) for name, item in value.items()})  # type: ignore[call-arg]
    if isinstance(value, (list, tuple)):
        return type(value)(_move(item, device) for item in value)
    return value


adapter = CoreAdapter()
