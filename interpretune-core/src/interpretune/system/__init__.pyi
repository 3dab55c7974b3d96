from interpretune.system.own_context import OwnContext
from interpretune.system.put_back import Changed, random_state_put_back

__all__ = [
    "Changed",
    "OwnContext",
    "random_state_put_back",
]
