"""The example in the README runs and prints what it says."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_example_prints_what_the_page_shows(capsys):
    text = README.read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python runnable\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (shown,) = re.findall(r"^```text output\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    exec(compile(code, str(README), "exec"), {})
    assert capsys.readouterr().out == shown
