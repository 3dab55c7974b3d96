"""nnsight is imported of a known version only, and without what it changes for the whole process."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

import interpretune as it
from interpretune.testing import tiny_tokenizer
from interpretune_nnsight import library

QUIET = """
import torch
import interpretune as it
from interpretune_nnsight.adapter import adapter
backward = torch.Tensor.backward
before = {cls: set(vars(cls)) for cls in (object, torch.Tensor, torch.nn.Module)}
"""


def in_fresh_process(program: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("installed", "said"), [(None, "nnsight is not installed"), ("0.7.4", "0.7.4 is installed"), ("0.9.0", "0.9.0 is")]
)
def test_a_missing_or_unsupported_nnsight_is_refused_before_a_model_is_read(installed, said, monkeypatch, tmp_path):
    def version(name):
        assert name == "nnsight"
        if installed is None:
            raise PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(library, "version", version)
    tiny_tokenizer().save_pretrained(tmp_path)
    shared = it.ITSharedConfig(model_name_or_path="/there/is/no/such/model", tokenizer_name=str(tmp_path))
    with pytest.raises(it.ModelLoadError, match=said) as raised:
        it.ITSession(it.ITSessionConfig(adapter_ctx=("nnsight",), shared_cfg=shared))
    assert "nnsight>=0.8,<0.9, and" in str(raised.value)
    assert 'pip install "nnsight>=0.8,<0.9"' in str(raised.value)


def test_nnsight_is_imported_late_and_what_it_changes_stays_for_those_who_imported_it_before():
    program = f"""{QUIET}
import os, sys, warnings
print("nnsight" in sys.modules, flush=True)
warnings.simplefilter("ignore")  # newer versions of Python warn of threads
child = os.fork()
warnings.simplefilter("error")
if not child:
    import nnsight
    from interpretune_nnsight.library import import_nnsight
    import_nnsight()
    print(torch.Tensor.backward is backward, hasattr(3, "save"), flush=True)
    os._exit(0)
os.waitpid(child, 0)
from interpretune_nnsight.library import import_nnsight
import_nnsight()
import nnsight
print(torch.Tensor.backward is backward, all(set(vars(cls)) == names for cls, names in before.items()))
print(hasattr(3, "save"), nnsight.__version__.startswith("0.8"))
"""
    late, before, after = ["False"], ["False", "True"], ["True", "True", "False", "True"]
    assert in_fresh_process(program) == [*late, *before, *after]
