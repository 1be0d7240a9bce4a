"""Our top-level names do not get in the way of the libraries that know packages of the same name."""

import subprocess
import sys


def test_transformers_works_beside_our_package_named_kernels() -> None:
    code = "import kernels, transformers; from transformers import LlamaForCausalLM; print(kernels.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "loraplane" in done.stdout or done.stdout.strip().endswith("kernels/__init__.py")


def test_the_control_plane_starts_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "import control_plane.__main__, control_plane.cli.main"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
