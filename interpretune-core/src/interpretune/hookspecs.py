"""The contract: every hook that an adapter may implement, grouped by phase.

An adapter is an object with a frozen ``declaration`` and methods marked ``@interpretune.hookimpl``. It implements the
hooks that it has something to say to and may leave out arguments that it does not use.

How results combine:

* *collected*: every adapter is called, in stack order (core first); ``None`` results are dropped.
* *first result*: adapters are called in stack order, core last, until one returns something other than ``None``.
* *all run*: every adapter is called, in stack order, and results are ignored; ``it_close_analysis`` goes the other way.

An exception in an implementation stops the call and reaches the caller; during ``it_init`` core then ends the session
(``it_end_session``) before the exception goes on. While a session is being built (the hooks of the phase init) there is
none to end: an implementation that fails there releases what it holds itself.

Any hook may be wrapped (``hookimpl(wrapper=True)``); the wrapper of the adapter that stands lowest in the stack is
outermost. ``tryfirst`` and ``trylast`` are reserved for core.

All hooks exist since contract 1.0, unless ``INTRODUCED_IN`` says otherwise.
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

FIRST_CONTRACT = "1.0"
INTRODUCED_IN: Mapping[str, str] = {}
"""Hooks that came later, with the version of the contract that brought them. An adapter that implements one of them and
declares an earlier contract is refused: the core that it was written for would never call the hook."""

# ---------------------------------------------------------------------------------------------------------------- init


@hookspec
def it_contribute_classes() -> ClassContribution | None:
    """Contribute base classes to the composed module, data module and configurations.

    Called once when an execution context is built. Collected.
    """


@hookspec(firstresult=True)
def it_configure_latents(request: LatentRequest) -> Mapping[str, Any] | None:
    """Turn a request for latent models into fields of the module's configuration.

    Called once for each session whose configuration has ``latents`` (from a script, a file of ``interpretune run``, the
    demo), before the module's configuration is composed. First result; None leaves the answer to another adapter.
    """


@hookspec(firstresult=True)
def it_load_model(module: ITModule) -> nn.Module | None:
    """Load the model that ``module.it_cfg`` describes.

    Called once for each session, from ``ITModule.__init__``, when ``module.it_cfg`` is complete and nothing else is.
    First result; core loads a Hugging Face model if nobody else does. At most one adapter besides core may implement
    this hook: a second one is refused when the context is built.
    """


@hookspec
def it_load_latent_models(module: ITModule) -> Sequence[LatentModel] | None:
    """Load the latent models (sparse autoencoders, transcoders, ...) that ``module.it_cfg`` asks for.

    Called once for each session, right after the model was loaded. Collected; the lists are joined in stack order.
    """


# --------------------------------------------------------------------------------------------------------------- setup


@hookspec
def it_prepare_data(datamodule: ITDataModule, module: ITModule) -> None:
    """Write the prepared data set to disk.

    Called by ``it_init`` in every process of a run, so it must be safe to call at the same time. All run; core calls
    the data module's ``prepare_data`` in one process while the others wait, unless the cache holds its result. Assign
    no state here.
    """


@hookspec
def it_setup_datamodule(datamodule: ITDataModule, module: ITModule) -> None:
    """Set up the data module from what was prepared.

    Called once by ``it_init`` after ``it_prepare_data``, in every process. All run; core calls the data module's
    ``setup``.
    """


@hookspec
def it_setup_module(module: ITModule, datamodule: ITDataModule) -> None:
    """Set up the module; the data module is ready and core has called the module's ``setup``.

    Called once by ``it_init`` after ``it_setup_datamodule``. All run. May add or replace ``module.latent_models``.
    """


@hookspec(firstresult=True)
def it_configure_optimizers(module: ITModule) -> OptimizerSetup | None:
    """Build optimizers and learning-rate schedulers.

    Called by ``module.configure_optimizers`` (which a user may override): last in ``it_init``, and again when training
    begins. First result; core follows ``it_cfg.optimizer_init`` and ``lr_scheduler_init``.
    """


@hookspec
def it_name_parameters(module: ITModule) -> Mapping[str, Sequence[str]] | None:
    """Give further names to parameters, those that the stacked library's users know.

    Called where a user names parameters, in a fine-tuning schedule for one. Collected: for each further name the names
    in ``module.named_parameters()`` that it stands for.
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

    Called for each forward of the module. First result: logits ``[batch, pos, vocab]`` or an object that has them as
    its attribute ``logits``.
    """


@hookspec(firstresult=True)
def it_generate(module: ITModule, batch: Mapping[str, Any], generation_kwargs: Mapping[str, Any]) -> Any:
    """Generate from a batch without labels.

    Called for each ``module.it_generate``. First result: an object with ``sequences`` ``[batch, pos + new]`` and
    ``logits``, a tuple of ``[batch, vocab]``, one for each new token.
    """


@hookspec(firstresult=True)
def it_run_step(module: ITModule, step_name: str, step: Callable[[], Any]) -> Any:
    """Run one step (``training_step``, ``analysis_test_step``, ...) of the module.

    Called for each batch, whoever calls the step: core's loops, a trainer, or the user; of analyses that run together,
    for each analysis and batch. First result; core calls ``step``. Meant to be wrapped, by profilers and debuggers.
    """


@hookspec
def it_log(module: ITModule, metrics: Mapping[str, Tensor | float], options: Mapping[str, Any]) -> None:
    """Take note of logged metrics: scalars, detached, and the further arguments of the call (``batch_size``, ...).

    Called for each ``module.log`` and ``module.log_dict`` with what steps log, and at the end of each epoch of a loop
    with the means over it, by whoever runs the loop; then ``options`` is ``{"epoch_mean": True}``. An epoch that ends
    in its middle has no means. All run; core keeps what steps log in ``module.logged_metrics``.

    Both mappings are read-only, and tensors in them are copies: nothing that is done with them changes what is
    reported. Reading a tensor's value on an accelerator waits for it; do so seldom.
    """


@hookspec(firstresult=True)
def it_run_loop(module: ITModule, datamodule: ITDataModule, loop: str, loop_cfg: LoopConfig) -> LoopResult | None:
    """Run the loop ``fit``, ``validate``, ``test`` or ``predict``.

    Called by the functions of these names, after ``it_init``. First result; core loops in plain PyTorch, framework
    adapters hand over to their trainer. A framework that keeps an optimizer of its own checks it with
    ``interpretune.training.check_optimizers``.
    """


# ------------------------------------------------------------------------------------------------------------ analysis


@hookspec(firstresult=True)
def it_create_backend(module: ITModule) -> AnalysisBackend | None:
    """Supply the object through which analyses reach into the model.

    Called when a backend is first needed, and again after the module was set up or its latent models changed. First
    result; core's backend uses torch forward hooks.
    """


@hookspec
def it_contribute_operations(module: ITModule) -> Sequence[Operation] | None:
    """Offer operations that plans and configuration files can name.

    Called when operations are looked up by name. Collected; two operations of one name are refused.
    """


@hookspec
def it_open_analysis(module: ITModule, analysis: AnalysisRun) -> None:
    """An analysis over a data set begins.

    Called once for each analysis, before the first batch, by ``run_analysis``, ``AnalysisRunner`` (also from the
    command line) and trainers' callbacks. Not called for an analysis that is complete already, and not for a dry run.
    All run, in stack order.

    An exception ends the run: adapters whose implementation had returned are asked to close the analysis, and no
    others; a wrapper sees the exception at its ``yield``.
    """


@hookspec(firstresult=True)
def it_run_analysis(module: ITModule, analysis: AnalysisRun) -> Mapping[str, Any] | None:
    """Give the results of one analysis on one batch.

    Called once for each analysis and batch, inside ``it_run_step``, whoever has the batches: ``run_analysis``,
    ``AnalysisRunner`` or a trainer; where the module has an ``analysis_test_step`` of its own, by ``run_with_ctx``.
    ``analysis.batch_idx`` and ``analysis.inputs`` say which batch. First result: values of the fields that
    ``analysis.plan`` keeps, by name; core returns ``analysis.results()``. What is returned is what is stored.

    Meant to be wrapped: the results come out of ``yield``, and may be changed or replaced, in place too. Values that
    follow from changed ones are not computed anew. An exception ends the run; of results that other analyses have in
    common with this one, each has its own copy.
    """


@hookspec
def it_close_analysis(module: ITModule, analysis: AnalysisRun) -> None:
    """An analysis over a data set has ended, also by an exception.

    Called once for each analysis that was opened, when its results are complete: ``analysis.store`` has them, sealed
    unless other processes still write, and ``analysis.error`` is the exception that ended the run, or None. All run, in
    the opposite order: the analysis that was opened last is closed first, by the adapter at the top of the stack first.
    Adapters without ``it_open_analysis`` are called too, unless opening failed.

    An exception keeps no other adapter from closing. It goes on to the caller, or is noted at the one that ended the
    run.
    """


@hookspec
def it_report_session(module: ITModule) -> Sequence[ReportSection] | None:
    """Tell in tables what this adapter has to say of the session: what it loaded, trained or measured.

    Called by ``interpretune.analysis.report_sections``: after the analyses of ``interpretune run`` and of the demo, and
    whenever somebody asks. Collected.
    """


@hookspec
def it_end_session(module: ITModule, datamodule: ITDataModule) -> None:
    """Release what the session holds.

    Called once by ``it_session_end``, or by ``it_init`` after a failure. All run.
    """
