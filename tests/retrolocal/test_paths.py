from __future__ import annotations

import subprocess
import sys

from retrolocal.paths import builtin_model


def test_builtin_model_lies_in_the_package_of_models() -> None:
    assert builtin_model().name == "builtin"
    assert (builtin_model().parent / "__init__.py").is_file()


def test_finding_it_loads_no_torch() -> None:
    code = (
        "import sys; from retrolocal.paths import builtin_model; builtin_model();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
