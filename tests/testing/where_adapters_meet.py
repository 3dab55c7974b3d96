"""Rules of the kit that one adapter keeps alone and may break beside another.

Each adapter's own suite has the others, which take longer than these together.
"""

WHERE_ADAPTERS_MEET = """
session-runs life-cycle-in-order users-classes-unmodified sessions-stay-apart configurations-pickle
names-of-parameters operations-and-sections errors-arrive released-after-a-failure results-arrive state-loads
deterministic forward-agrees generation-agrees padding-forward cache-agrees edits-are-made no-hooks-left
splicing-agrees gradients-agree ablation-agrees interventions-agree loops-evaluate loop-trains checkpoints-are-loaded
wrappers-see-every-batch runner-agrees sessions-end
""".split()
