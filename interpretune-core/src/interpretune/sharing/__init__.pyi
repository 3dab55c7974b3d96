from .archive import Limits as Limits
from .card import store_card as store_card
from .hub import HubRepository as HubRepository
from .latent_export import export_latents as export_latents
from .loading import load_store as load_store
from .saving import save_store as save_store
