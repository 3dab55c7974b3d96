from interpretune.session.optimization import as_optimizer_setup, check_optimizers
from interpretune.session.step_routing import loss_of
from interpretune.training.batches import count_batches, only_loader, read_batches
from interpretune.training.checkpoint import CheckpointIdentity
from interpretune.training.evaluation import call_if_defined, evaluate, step_of
from interpretune.training.metric_log import batch_size_of

__all__ = [
    "CheckpointIdentity",
    "as_optimizer_setup",
    "batch_size_of",
    "call_if_defined",
    "check_optimizers",
    "count_batches",
    "evaluate",
    "loss_of",
    "only_loader",
    "read_batches",
    "step_of",
]
