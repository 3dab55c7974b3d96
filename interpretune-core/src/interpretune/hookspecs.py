"""The contract: every hook that an adapter may implement, grouped by phase.

An adapter is an object with a frozen ``declaration`` and methods marked ``@interpretune.hookimpl``. It implements the
hooks that it needs, and may omit arguments that it does not use.

How results combine:

* *collected*: every adapter is called, in stack order (core first); ``None`` results are dropped.
* *first result*: adapters are called in stack order, core last, until one returns something other than ``None``.
* *all run*: every adapter is called, in stack order, and results are ignored; ``it_close_analysis`` runs in the
  opposite order.

An exception in an implementation stops the call and reaches the caller. During ``it_init``, core ends the session
(``it_end_session``) before it re-raises the exception. While a session is being built (the hooks of the phase init),
there is no session to end: an implementation that fails there releases what it holds itself.

Any hook may be wrapped (``hookimpl(wrapper=True)``). The wrapper of the adapter that is lowest in the stack is the
outermost. ``tryfirst`` and ``trylast`` are reserved for core.

``INTRODUCED_IN`` says since which version of the contract there is a hook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interpretune.markers import hookspec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from interpretune.analysis.analysis_run import AnalysisRun
    from interpretune.backends.backend import AnalysisBackend
    from interpretune.config.latents import LatentRequest
    from interpretune.latents.latent_model import LatentModel
    from interpretune.operations import Operation
    from interpretune.plugins.contributions import ClassContribution, OptimizerSetup, ReportSection
    from interpretune.session.datamodule import ITDataModule
    from interpretune.session.module import ITModule
    from interpretune.training.config import LoopConfig, LoopResult

INTRODUCED_IN: Mapping[str, str] = {
    "it_contribute_classes": "1.0",
    "it_configure_latents": "1.0",
    "it_load_model": "1.0",
    "it_load_latent_models": "1.0",
    "it_prepare_data": "1.0",
    "it_setup_datamodule": "1.0",
    "it_setup_module": "1.0",
    "it_configure_optimizers": "1.0",
    "it_name_parameters": "1.0",
    "it_move_batch": "1.0",
    "it_forward": "1.0",
    "it_generate": "1.0",
    "it_run_step": "1.0",
    "it_log": "1.0",
    "it_run_loop": "1.0",
    "it_create_backend": "1.0",
    "it_contribute_operations": "1.0",
    "it_open_analysis": "1.0",
    "it_run_analysis": "1.0",
    "it_close_analysis": "1.0",
    "it_report_session": "1.0",
    "it_end_session": "1.0",
}
"""The version of the contract that each hook came with. An adapter that implements one but declares an earlier contract
is refused: the core it was written for would never call the hook."""

# ---------------------------------------------------------------------------------------------------------------- init


@hookspec
def it_contribute_classes() -> ClassContribution | None:
    """Contribute base classes to the composed module, data module and configurations.

    Called once when an execution context is built. Collected.
    """


@hookspec(firstresult=True)
def it_configure_latents(request: LatentRequest) -> Mapping[str, Any] | None:
    """Turn a request for latent models into fields of the module's configuration.

    Called once for each session whose configuration has ``latents`` (from a script or a file of ``interpretune
    run``), before the module's configuration is composed. First result; return None to leave it to another adapter.
    """


@hookspec(firstresult=True)
def it_load_model(module: ITModule) -> nn.Module | None:
    """Load the model that ``module.it_cfg`` describes.

    Called once for each session, from ``ITModule.__init__``, when ``module.it_cfg`` is complete and nothing else is.
    First result; core loads a Hugging Face model if no other adapter does. At most one adapter besides core may
    implement this hook: a second one is refused when the context is built.
    """


@hookspec
def it_load_latent_models(module: ITModule) -> Sequence[LatentModel] | None:
    """Load the latent models (sparse autoencoders, transcoders, ...) that ``module.it_cfg`` asks for.

    Called once for each session, right after the model is loaded. Collected; the lists are joined in stack order.
    """


# --------------------------------------------------------------------------------------------------------------- setup


@hookspec
def it_prepare_data(datamodule: ITDataModule, module: ITModule) -> None:
    """Write the prepared data set to disk.

    Called by ``it_init`` in every process of a run, so it must be safe to call concurrently. All run; core calls the
    data module's ``prepare_data`` in one process while the others wait, unless the cache holds its result. Do not set
    any state here.
    """


@hookspec
def it_setup_datamodule(datamodule: ITDataModule, module: ITModule) -> None:
    """Set up the data module from the prepared data.

    Called once by ``it_init`` after ``it_prepare_data``, in every process. All run; core calls the data module's
    ``setup``.
    """


@hookspec
def it_setup_module(module: ITModule, datamodule: ITDataModule) -> None:
    """Set up the module; the data module is ready and core has called the module's ``setup``.

    Called once by ``it_init`` after ``it_setup_datamodule``. All run. An implementation may add to or replace
    ``module.latent_models``.
    """


@hookspec(firstresult=True)
def it_configure_optimizers(module: ITModule) -> OptimizerSetup | None:
    """Build optimizers and learning-rate schedulers.

    Called by ``module.configure_optimizers`` (which a user may override): at the end of ``it_init``, and again
    when training begins. First result; core follows ``it_cfg.optimizer_init`` and ``lr_scheduler_init``.
    """


@hookspec
def it_name_parameters(module: ITModule) -> Mapping[str, Sequence[str]] | None:
    """Give additional names to parameters, those that users of the stacked library know.

    Called where a user names parameters, for example in a fine-tuning schedule. Collected: for each additional name,
    the names in ``module.named_parameters()`` that it stands for.
    """


# ---------------------------------------------------------------------------------------------------------------- step


@hookspec(firstresult=True)
def it_move_batch(module: ITModule, batch: Any) -> Any:
    """Move a batch to the module's device.

    Called for each batch. First result; core moves tensors in mappings and sequences.
    """


@hookspec(firstresult=True)
def it_forward(module: ITModule, batch: Mapping[str, Any]) -> Any:
    """Run the model on a batch without labels.

    Called for each forward of the module. First result: logits ``[batch, pos, vocab]``, or an object with an
    attribute ``logits``.
    """


@hookspec(firstresult=True)
def it_generate(module: ITModule, batch: Mapping[str, Any], generation_kwargs: Mapping[str, Any]) -> Any:
    """Generate from a batch without labels.

    Called for each ``module.it_generate``. First result: an object with ``sequences`` ``[batch, pos + new]`` and
    ``logits``, a tuple with one ``[batch, vocab]`` per new token.
    """


@hookspec(firstresult=True)
def it_run_step(module: ITModule, step_name: str, step: Callable[[], Any]) -> Any:
    """Run one step (``training_step``, ``analysis_test_step``, ...) of the module.

    Called for each batch, whoever calls the step: core's loops, a trainer, or the user. When analyses run together, it
    is called for each analysis and batch. First result; core calls ``step``. Profilers and debuggers wrap this hook.
    """


@hookspec
def it_log(module: ITModule, metrics: Mapping[str, Tensor | float], options: Mapping[str, Any]) -> None:
    """Receive logged metrics: detached scalars, and the other arguments of the call (``batch_size``, ...).

    Called for each ``module.log`` and ``module.log_dict`` with what steps log. Also called by whoever runs the loop at
    the end of each epoch, with the means over it; then ``options`` is ``{"epoch_mean": True}``. An epoch that stops
    halfway has no means. All run; core keeps what steps log in ``module.logged_metrics``.

    Both mappings are read-only, and tensors in them are copies: changing them does not change what is reported. Reading
    a tensor's value on an accelerator waits for it, so do it rarely.
    """


@hookspec(firstresult=True)
def it_run_loop(module: ITModule, datamodule: ITDataModule, loop: str, loop_cfg: LoopConfig) -> LoopResult | None:
    """Run the loop ``fit``, ``validate``, ``test`` or ``predict``.

    Called by the functions of these names, after ``it_init``. First result; core loops in plain PyTorch, framework
    adapters call their trainer. A framework that keeps its own optimizer checks it with
    ``interpretune.training.check_optimizers``.
    """


# ------------------------------------------------------------------------------------------------------------ analysis


@hookspec(firstresult=True)
def it_create_backend(module: ITModule) -> AnalysisBackend | None:
    """Supply the object through which analyses reach into the model.

    Called when a backend is first needed, and again after the module is set up or its latent models change. First
    result; core's backend uses torch forward hooks.
    """


@hookspec
def it_contribute_operations(module: ITModule) -> Sequence[Operation] | None:
    """Offer operations that plans and configuration files can name.

    Called when operations are looked up by name. Collected; two operations of the same name are refused.
    """


@hookspec
def it_open_analysis(module: ITModule, analysis: AnalysisRun) -> None:
    """An analysis over a data set begins.

    Called once for each analysis, before the first batch, by ``run_analysis``, ``AnalysisRunner`` (also from the
    command line) and trainers' callbacks. Not called for an analysis that is complete already, and not for a dry run.
    A question (``QuestionCfg``) is opened and closed like any analysis; ``it_run_analysis`` is not called for it. All
    run, in stack order.

    An exception ends the run: only adapters whose implementation has returned are asked to close the analysis. A
    wrapper sees the exception at its ``yield``.
    """


@hookspec(firstresult=True)
def it_run_analysis(module: ITModule, analysis: AnalysisRun) -> Mapping[str, Any] | None:
    """Give the results of one analysis on one batch.

    Called once for each analysis and batch, inside ``it_run_step``, by whatever supplies the batches: ``run_analysis``,
    ``AnalysisRunner`` or a trainer. If the module has its own ``analysis_test_step``, ``run_with_ctx`` calls it.
    ``analysis.batch_idx`` and ``analysis.inputs`` say which batch. First result: values of the fields that
    ``analysis.plan`` keeps, by name; core returns ``analysis.results()``. What is returned is what gets stored.

    Wrap this hook to change results: they come out of ``yield``, and may be replaced or changed in place. Values that
    depend on changed ones are not recomputed. Each analysis has its own copy of results that several analyses share.
    An exception ends the run.
    """


@hookspec
def it_close_analysis(module: ITModule, analysis: AnalysisRun) -> None:
    """An analysis over a data set has ended, also by an exception.

    Called once for each analysis that was opened, when its results are complete. ``analysis.store`` has them, sealed
    unless other processes are still writing; ``analysis.error`` is the exception that ended the run, or None. All run,
    in the opposite order: the analysis opened last is closed first, and the adapter at the top of the stack is called
    first. Adapters without ``it_open_analysis`` are called too, unless opening failed.

    An exception does not stop other adapters from closing. It reaches the caller, or is added as a note to the
    exception that ended the run.
    """


@hookspec
def it_report_session(module: ITModule) -> Sequence[ReportSection] | None:
    """Report in tables what this adapter loaded, trained or measured in the session.

    Called by ``interpretune.analysis.report_sections``: after the analyses of ``interpretune run``, and
    whenever a user calls it. Collected.
    """


@hookspec
def it_end_session(module: ITModule, datamodule: ITDataModule) -> None:
    """Release whatever the adapter holds for the session.

    Called once by ``it_session_end``, or by ``it_init`` after a failure. All run.
    """
