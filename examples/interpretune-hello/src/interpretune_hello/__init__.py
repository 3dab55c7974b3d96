"""Logs how long each step takes."""

import time
from collections.abc import Generator
from typing import Any

from interpretune import AdapterDeclaration, ITModule, hookimpl


class Hello:
    declaration = AdapterDeclaration(name="hello", level="extension", contract="1.0")

    @hookimpl(wrapper=True)
    def it_run_step(self, module: ITModule, step_name: str) -> Generator[None, Any, Any]:
        start = time.perf_counter()
        result = yield
        module.log(f"{step_name}_seconds", time.perf_counter() - start)
        return result


adapter = Hello()
