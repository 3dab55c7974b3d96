"""The environment as it was when the kit was first imported: adapters that were imported since may have changed it."""

from __future__ import annotations

import os
from collections.abc import Mapping

ENVIRONMENT: Mapping[str, str] = dict(os.environ)
