"""List every experiment with the facts of its header, and every claim."""

import re
from pathlib import Path

import yaml

CONFIGS = Path(__file__).parent.parent / "configs"
EXPERIMENTS = CONFIGS / "experiment"
FACTS = ("paper", "shows", "time", "command")


def header(path: Path) -> dict[str, str]:
    """The facts `# name: text` in the comment on top of an experiment's config.

    Raises:
        ValueError: a fact is missing.
    """
    found = dict(re.findall(r"^# (\w+): (.+)$", path.read_text(), flags=re.MULTILINE))
    missing = [fact for fact in FACTS if fact not in found]
    if missing:
        raise ValueError(f"{path.name} lacks {', '.join(missing)} in its header.")
    return {fact: found[fact] for fact in FACTS}


def main() -> None:
    """Print the list."""
    for path in sorted(EXPERIMENTS.glob("*.yaml")):
        print(path.stem)
        for fact, text in header(path).items():
            print(f"    {fact:<9}{text}")
    for path in sorted((CONFIGS / "claim").glob("*.yaml")):
        print(f"make reproduce CLAIM={path.stem}\n    {yaml.safe_load(path.read_text())['title']}")


if __name__ == "__main__":
    main()
