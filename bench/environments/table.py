"""Write table.md from results.csv.

python bench/environments/table.py
"""

from __future__ import annotations

import csv
from pathlib import Path

HERE = Path(__file__).parent
COLUMNS = ("row", "environment", "steps", "seeds", "S", "mode", "random", "steps/s", "slope", "p")


def main() -> None:
    """One line a row of the CSV's runs and settings, in the order in which they were first run."""
    with (HERE / "results.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    kinds = list(dict.fromkeys((run["row"], run["settings"]) for run in runs))
    for name, settings in kinds:
        mine = [run for run in runs if (run["row"], run["settings"]) == (name, settings)]
        first = mine[0]
        dropped = (name, settings) != [kind for kind in kinds if kind[0] == name][-1]
        is_pong = name.startswith("pong")
        cells = [
            f"{name}, first choice" if dropped else name,
            first["env"],
            f"{int(first['steps']):,}",
            str(len(mine)),
            ", ".join(f"{float(run['S']):.4g}" for run in mine),
            ", ".join(f"{float(run['D']):.4g}" for run in mine),
            f"{sum(float(run['random']) for run in mine) / len(mine):.4g}",
            f"{sum(float(run['steps_per_second']) for run in mine) / len(mine):,.0f}",
            f"{float(first['slope']):.2g}" if is_pong else "",
            f"{float(first['slope_p']):.1g}" if is_pong else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    (HERE / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
