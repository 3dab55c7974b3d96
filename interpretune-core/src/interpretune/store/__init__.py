"""Results on disk: written batch by batch, safe against kills, read as a stream and by any Arrow reader.

Whatever is wrong with a file or a value raises ``StoreError``, which says what to do.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
