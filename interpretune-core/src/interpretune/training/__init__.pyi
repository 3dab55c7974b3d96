from interpretune.session.optimization import (
    as_optimizer_setup as as_optimizer_setup,
    check_optimizers as check_optimizers,
)
from interpretune.session.step_routing import loss_of as loss_of
from interpretune.training.batches import (
    count_batches as count_batches,
    only_loader as only_loader,
    read_batches as read_batches,
)
from interpretune.training.checkpoint import CheckpointIdentity as CheckpointIdentity
from interpretune.training.evaluation import (
    call_if_defined as call_if_defined,
    evaluate as evaluate,
    step_of as step_of,
)
from interpretune.training.metric_log import batch_size_of as batch_size_of
