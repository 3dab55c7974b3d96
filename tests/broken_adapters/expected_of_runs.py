"""What the kit must say of adapters that train, analyse, remember and import wrongly, and of variants of them."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent

FOUND_IN_RUNS = {
    # training
    "ignores_max_steps": ("loop-ends-at-max-steps", "max_steps=2 training_step ran 12 times"),
    "ignores_accumulation": ("loop-accumulates", "accumulate_grad_batches=3 made 4 optimizer steps"),
    "clips_nothing": ("loop-clips-gradients", "follows a gradient of the norm", "cut to 0.001"),
    "ignores_limits": ("loop-keeps-limits", "limit_train_batches=2 and limit_val_batches=1"),
    "validates_in_train_mode": ("validation-in-eval-mode", "in a validation inside fit", "are in train mode"),
    "keeps_losses": ("loop-lets-batches-go", "at a training_step", "tensors of earlier batches and their losses"),
    "ignores_run_dir": ("loop-writes-to-run-dir", "wrote no file into it"),
    "loads_no_checkpoint": ("checkpoints-are-loaded", "resume_from='last'", "off by"),
    "freezes_everything": ("model-stays-trainable", "with freeze=False", "30 of 30 parameters", "are frozen"),
    # analyses
    "turns_gradients_off_for_analyses": ("analysis-keeps-grad-mode", "clean_no_sae gradients are off", "on, as before"),
    "trains_after_analyses": ("analysis-keeps-train-mode", "after the analysis clean_no_sae", "(train mode)"),
    "steps_past_the_hooks": ("wrappers-see-every-batch", "called it_run_analysis 0 times", "6 calls"),
    "remembers_by_batch": ("runner-agrees", "loss of batch 0", "in the store beside run_analysis", "off by"),
    "counts_its_sessions": ("runner-finds-its-stores", "the second run made 3 steps", "is not run again"),
    "offers_a_failing_operation": ("operations-run", "prompt_lengths fails in its first run: AttributeError"),
    "changes_what_it_reads": ("operations-leave-what-they-read", "centred_logits changed in place answer_logits"),
    "changes_logged_metrics": ("metrics-stay-as-logged", "changed an_accuracy in place from 0.5 to 50.0"),
    # memory and threads
    "keeps_each_batch": ("batches-are-let-go", "after 4 times a forward"),
    "keeps_each_module": ("sessions-are-let-go", "its module and its model and its data module are alive"),
    "keeps_its_batch_on_itself": ("threads-stay-apart", "logits of the forward", "in two sessions"),
}
"""Each breaks one rule and no other."""

VARIANTS = {
    "counts_steps_after_epochs": ("loop-ends-at-max-steps", "training_step ran 4 times"),
    "adds_up_gradients": ("loop-accumulates", "change of ", "off by"),
    "drops_the_last_accumulation": ("loop-accumulates", "made 1 optimizer steps"),
    "clips_by_norm_only": ("loop-clips-gradients", "gradient_clip_algorithm='value'"),
    "ignores_limits_of_validation": ("loop-keeps-limits", "validation_step, validation_step, validation_step"),
    "takes_shares_for_numbers": ("loop-keeps-limits", "limit_train_batches=0.5"),
    "stays_in_evaluation_mode": ("validation-in-eval-mode", "after a validation training goes on", "evaluation mode"),
    "puts_most_back_into_train_mode": ("validation-in-eval-mode", "model.embed_tokens (evaluation mode)"),
    "keeps_batches_of_validation": ("loop-lets-batches-go", "at a test_step 6 tensors"),
    "writes_where_it_stands": ("loop-writes-to-run-dir", "checkpoints/last.pt into the working directory"),
    "resumes_nothing": ("checkpoints-are-loaded", "resume_from='last'"),
    "freezes_its_embeddings": ("model-stays-trainable", "1 of 30 parameters", "embed_tokens.weight"),
    "runs_without_gradients": ("model-stays-trainable", "know no gradients"),
    "turns_gradients_on_again": (
        "analysis-keeps-grad-mode",
        "in a step of the analysis clean_no_sae gradients are off",
    ),
    "turns_gradients_off_in_batches": ("analysis-keeps-grad-mode", "after a run of AnalysisRunner gradients are off"),
    "evaluates_after_analyses": ("analysis-keeps-train-mode", "after the analysis", "(evaluation mode)"),
    "trains_between_batches": ("analysis-keeps-train-mode", "in the forwards of the analysis", "run in train mode"),
    "steps_twice": ("wrappers-see-every-batch", "called it_run_analysis 12 times", "6 calls"),
    "reports_bits_for_some": ("runner-agrees", "loss of batch 0 of clean_no_sae"),
    "names_latent_models_anew": ("runner-finds-its-stores", "the second run made 3 steps"),
    "offers_an_operation_for_many_rows": ("operations-run", "prompt_spread fails in its first run"),
    "offers_a_counting_operation": ("operations-run", "two runs of the operation calls differ at batch 0"),
    "offers_a_failing_summary": ("operations-run", "mean_length fails in its first run"),
    "changes_the_mask": ("operations-leave-what-they-read", "real_tokens changed in place inputs.attention_mask"),
    "takes_options_out": ("metrics-stay-as-logged", "it_log changed the options", "left alone"),
    "rounds_what_is_logged": ("metrics-stay-as-logged", "has the mean 0.34225", "weighted by batch_size"),
    "keeps_activations_of_each_run": ("batches-are-let-go", "after 4 times a run with a cache"),
    "keeps_logged_tensors": ("batches-are-let-go", "after 4 times a log call"),
    "remembers_by_module": ("sessions-are-let-go", "its module and its model"),
    "cleans_up_at_exit": ("sessions-are-let-go", "its module and its model"),
    "keeps_its_cache_on_the_backend": ("threads-stay-apart", "cached activations", "in two sessions"),
    "keeps_edits_in_its_module": ("threads-stay-apart", "in two sessions"),
    "runs_past_the_turns": ("threads-stay-apart", "logits of the backend", "in one session"),
}
"""The same bugs in other forms, each for one rule, which is checked alone."""

FIRST_VARIANTS = [
    variant
    for rule, variant in {rule: variant for variant, (rule, *_) in reversed(VARIANTS.items())}.items()
    if rule != "batches-are-let-go"  # looks at what is alive many times
]
"""One for each rule; ``make broken-adapters`` checks all."""

IMPORTS = {
    "patches_with_a_partial": ("import-patches-nothing", "torch.load"),
    "patches_a_function_of_torch": ("import-patches-nothing", "torch.nn.functional.gelu"),
    "patches_builtins": ("import-patches-nothing", "builtins.print"),
    "patches_once": ("import-patches-nothing", "transformers.modeling_utils.PreTrainedModel.init_weights"),
    "hides_warnings": ("import-changes-nothing", "the filters of warnings: ('ignore'"),
    "sets_up_logging": ("import-changes-nothing", "loggers: root"),
    "sets_a_variable": ("import-changes-nothing", "the environment: ACME_HOME"),
}
"""Variants of what an import changes, all imported in one process."""


def variants() -> set[str]:
    """All that live in the folder of variants."""
    return {file.stem for file in (HERE / "variants").glob("*.py")} - {"__init__"}
