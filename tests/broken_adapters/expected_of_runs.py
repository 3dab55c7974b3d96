"""What the kit must say of the animals that train, analyse, remember and import wrongly, and of variants of them."""

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
}
"""The same bugs in other forms, each for one rule, which is checked alone."""


def variants() -> set[str]:
    """All that live in the folder of variants."""
    return {file.stem for file in (HERE / "variants").glob("*.py")} - {"__init__"}
