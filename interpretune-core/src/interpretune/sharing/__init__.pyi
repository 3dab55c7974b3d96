from .archive import Limits
from .card import store_card
from .hub import HubRepository
from .loading import load_store
from .saving import save_store

__all__ = ["HubRepository", "Limits", "load_store", "save_store", "store_card"]
