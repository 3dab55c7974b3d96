"""For each broken adapter the rule that it breaks, and words that the kit must say."""

from __future__ import annotations

from pathlib import Path

from tests.broken_adapters.expected_of_numbers import FOUND_IN_NUMBERS
from tests.broken_adapters.expected_of_runs import FOUND_IN_RUNS

HERE = Path(__file__).parent
MISBEHAVING = "misbehaving"
SOUND = f"{MISBEHAVING}.sound"
SOUND_LATENTS = f"{MISBEHAVING}.sound_latents"

REFUSED = {
    "a_class": ("an-instance-with-a-declaration", "is the class AClass"),
    "a_dict_for_a_declaration": ("an-instance-with-a-declaration", "found {'name': 'acme'"),
    "another_name": ("an-instance-with-a-declaration", "declares the name 'menagerie'"),
    "broken_import": ("importable", "a_package_that_nobody_has"),
    "conflicts_with_core": ("stacks-alone", "conflict with 'core'"),
    "extra_argument": ("hook-signatures", "temperature"),
    "fails_when_imported": ("importable", "libacme.so.7 is too old"),
    "foreign_marker": ("hook-signatures", "it_forward is not marked"),
    "hook_of_no_name": ("hook-signatures", "zzz"),
    "misspelt_hook": ("hook-signatures", "Did you mean it_forward?"),
    "newer_contract": ("contract-version", "contract 2.0"),
    "no_declaration": ("an-instance-with-a-declaration", "no AdapterDeclaration"),
    "requires_the_absent": ("requirements-installed", "'quagga'"),
    "stands_below_core": ("stacks-alone", "acme (extension, requires nothing, before core)"),
    "unknown_level": ("importable", "'penthouse'"),
    "unmarked_hook": ("hook-signatures", "it_forward is not marked"),
    "wants_to_be_first": ("hook-signatures", "tryfirst"),
    "wants_to_be_last": ("hook-signatures", "trylast"),
    "without_self": ("hook-signatures", "without `self`"),
    "wrapper_without_yield": ("hook-signatures", "it_run_step"),
    "wrong_contribution": ("hook-signatures", "ClassContribution"),
}
"""Stacking refuses these already; the kit says which rule they break."""

FOUND = {
    # form
    "declares_what_it_computes": ("declaration-readable", "that can be read", "without running it"),
    "takes_a_name_of_core": ("offers-can-be-used", "'tasks' of interpretune-acme 3.1.4 is refused: core has one"),
    "is_slow_to_import": ("import-is-cheap", "times as long as importing torch"),
    "changes_things_at_import": ("import-changes-nothing", "the number of threads of torch"),
    "patches_at_import": ("import-patches-nothing", "another torch.nn.modules.linear.Linear.forward"),
    "changes_its_mind": ("stacks-in-every-order", "2 different stacks"),
    "base_without_arguments": ("session-runs", "unexpected keyword argument 'it_cfg'"),
    "cannot_be_pickled": ("configurations-pickle", "composed configuration of the module", "pickle local object"),
    "forgets_settings": ("configurations-pickle", "with other values of acme_keepers"),
    "names_parameters_that_are_not": ("names-of-parameters", "'model.acme.weight'"),
    "signs_as_another": ("operations-and-sections", "'menagerie'"),
    # life cycle
    "fails_at_the_end": ("session-runs", "acme_file"),
    "sets_up_twice": ("life-cycle-in-order", "['setup', 'setup', 'configure_optimizers']"),
    "swallows_errors_of_steps": ("errors-arrive", "UserModule.test_step did not reach the caller"),
    "swallows_errors_of_setup": ("errors-arrive", "UserDataModule.setup did not reach the caller"),
    "copies_errors": ("errors-arrive", "another object, PlannedError from PlannedError"),
    "renames_errors": ("errors-arrive", "another object, RuntimeError from PlannedError"),
    "holds_on_after_failures": ("released-after-a-failure", "prepare_data", "acme-keeper still run"),
    "holds_on_after_failing_steps": (
        "released-after-a-failure",
        "in a step of the loop `test`",
        "acme-keeper still run",
    ),
    "fails_after_predictions": ("sessions-end", "OSError: acme_file"),
    "forgets_to_return": ("results-arrive", "the caller got None", "return (yield)"),
    "loses_state": ("state-loads", "acme_"),
    # what belongs to others
    "sets_the_default_dtype": ("nothing-global-changes", "the default dtype of torch", "float64"),
    "turns_gradients_off": ("nothing-global-changes", "the grad mode of torch", "True -> False"),
    "sets_the_environment": ("nothing-global-changes", "the environment", "ACME_CACHE"),
    "seeds_the_process": ("nothing-global-changes", "the random state of torch"),
    "adds_a_log_handler": ("nothing-global-changes", "loggers", "NullHandler"),
    "patches_transformers": ("nothing-global-changes", "attributes of the class", "LlamaForCausalLM: forward"),
    "hooks_every_module": ("nothing-global-changes", "hooks on all modules of torch", "_global_forward_hooks"),
    "changes_the_users_class": ("users-classes-unmodified", "the class Mine", "acme"),
    "changes_the_users_configuration": ("users-classes-unmodified", "module_cfg", "generative_step_cfg"),
    "keeps_the_model_on_itself": ("sessions-stay-apart", "a second"),
    # numbers
    "leaves_dropout_on": ("deterministic", "train mode"),
    "draws_noise": ("deterministic", "differ by", "between two runs"),
    "scales_its_logits": ("forward-agrees", "off by"),
    "one_position_early": ("logits-where-asked", "logits at examples"),
    "squeezes_one_row": ("one-row", "logits of one row: shape", "[1, "),
    "guesses_the_mask": ("mask-is-required", "a forward of two rows without a mask"),
    "ignores_the_mask": ("padding-forward", "padding on the left"),
    "generates_with_padding_on_the_right": ("padding-generation", "padding on the right"),
    "backend_ignores_the_mask": ("padding-backend", "the backend's run, padding on the left"),
    "returns_prompts_when_padded": ("padding-generation", "goes on with the tokens"),
    "counts_padding_as_positions": ("positions-count-real-tokens", "learned positions, padding on the left"),
    "counts_positions_from_one": ("positions-count-real-tokens", "learned positions, alone"),
    "works_in_single_precision": ("dtype-follows", "torch.float32 in a module of float64"),
    "moves_batches_to_one_device": ("batches-move", "for a module on meta", "cpu"),
    "makes_tensors_elsewhere": ("results-on-the-device", "generated tokens: on meta"),
    # hook points
    "hides_a_place": ("canonical-names-exist", "layers.0.mlp_in"),
    "lists_a_place_that_never_fires": ("hook-points-fire", "acme.gate:out"),
    "guesses_names": ("misspelt-names-refused", "layers.0.resid_pots"),
    "leaves_a_hook_after_errors": ("errors-leave-no-hooks", "after an error in an edit", "forward_hooks"),
    "forgets_its_hook_when_stopped": ("errors-leave-no-hooks", "after an error in a spliced run", "forward_hooks"),
    "replaces_the_forward": ("no-hooks-left", "replaced forward of model"),
    "leaves_a_hook": ("no-hooks-left", "forward_hooks of model"),
    "hands_out_its_cache": ("cache-is-a-copy", "were set to 0"),
    "places_an_edit_wrongly": ("cache-agrees", "activations at layers.1.mlp_in"),
    "edits_in_place": ("edits-do-not-reach-back", "changed in place what it was given"),
    "ignores_edits": ("edits-are-made", "an edit at layers.0.attn_z changes no logit"),
    "edits_everywhere": ("edits-are-made", "logits with an edit at layers.0.resid_post"),
    # latent models and loops
    "spares_the_first_token": ("splicing-agrees", "off by"),
    "ablates_the_wrong_latent": ("ablation-agrees", "single latents of layers.0.resid_post"),
    "replays_at_shifted_positions": ("replays-are-trusted", "replays are refused", "differ from those of whole"),
    "attaches_nowhere": ("session-runs", "layers.1.resid_pots", "layers.1.resid_post"),
    "decodes_once": ("latent-models-decode", "a second decoding"),
    "skips_the_last_batch": ("loops-evaluate", "shape [6, 2]"),
    "averages_batches_alike": ("loops-evaluate", "val_loss of the loop `validate`", "off by"),
    "trains_nothing": ("loop-trains", "trainable parameters are as before"),
    **FOUND_IN_NUMBERS,
    **FOUND_IN_RUNS,
}
"""These stack and run; only the kit finds what is wrong. Each breaks one rule and no other."""

EXPECTED = {**REFUSED, **{f"{MISBEHAVING}.{name}": expected for name, expected in FOUND.items()}}

SLOW_IMPORT = f"{MISBEHAVING}.is_slow_to_import"
IMPORTED_TOGETHER = (SLOW_IMPORT, f"{MISBEHAVING}.patches_at_import", f"{MISBEHAVING}.changes_things_at_import")
"""How long these take, and what they change, is looked at in one process."""


def all_broken() -> set[str]:
    """All that live here."""
    other = {"__init__", "checking", "verdicts", "every_rule", "sound", "sound_framework", "sound_latents"}
    other |= {"expected", "expected_of_numbers", "expected_of_runs"}
    files = [*HERE.glob("*.py"), *(HERE / MISBEHAVING).glob("*.py")]
    stems = [file for file in files if file.stem not in other and not file.stem.startswith("test_")]
    return {".".join((*file.relative_to(HERE).parts[:-1], file.stem)) for file in stems}
