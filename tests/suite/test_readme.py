"""What the README shows works as it stands."""

import re
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_example_runs_and_goes_downhill(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    exec(code.replace("import torch\n", "import torch\ntorch.manual_seed(0)\n", 1), {})
    values = [
        float(line.split()[1]) for line in capsys.readouterr().out.splitlines() if "tensor" in line
    ]
    assert values[-1] < values[0]


def test_every_link_leads_somewhere():
    root = Path(__file__).parents[2]
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (root / link).exists(), link
