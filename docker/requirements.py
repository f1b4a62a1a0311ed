"""Print what pyproject.toml requires: the base and the extras that the arguments name, one requirement a line."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = [requirement for extra in sys.argv[1:] for requirement in project["optional-dependencies"][extra]]
others = [requirement for requirement in extras if not requirement.startswith("jfb[")]  # an extra of ours is no package
sys.stdout.write("\n".join([*project["dependencies"], *others, ""]))
