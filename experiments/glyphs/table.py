"""Writes the README's table of results, from expected.json and the weights' records.

Run: ./run python experiments/glyphs/table.py
"""

import json
from pathlib import Path

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- by table.py -->\n", "<!-- end -->\n"
SETTINGS = [(5, 1), (5, 5), (20, 1), (20, 5)]
MEASURES = ("accuracy", "log_loss", "ece")


def interval(entry):
    return f"{entry['value']:.4f} ± {entry['ci95']:.4f}"


def measured(rows, read):
    """Returns a table of methods by settings; `read` takes a row and returns its cell."""
    lines = [
        "| | " + " | ".join(f"{ways}-way {shots}-shot" for ways, shots in SETTINGS) + " |",
        "|---" * (len(SETTINGS) + 1) + "|",
    ]
    for name in dict.fromkeys(row["method"] for row in rows):
        by_setting = {(row["ways"], row["shots"]): row for row in rows if row["method"] == name}
        cells = [
            read(by_setting[setting]) + " *" * by_setting[setting]["chosen"]
            if setting in by_setting
            else ""
            for setting in SETTINGS
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def trainings():
    """Returns a table of how the shipped weights came about."""
    lines = [
        "| weights | settings searched | rate | validation log loss | minutes |",
        "|---" * 5 + "|",
    ]
    for file in sorted((FOLDER / "weights").glob("*.json")):
        record = json.loads(file.read_text())
        lines.append(
            f"| {file.stem} | {len(record['search'])} | {record['rate']:g} "
            f"| {min(record['score']):.4f} | {record['minutes']:.1f} |"
        )
    return "\n".join(lines)


def main():
    result = json.loads((FOLDER / "expected.json").read_text())
    rows = result["rows"]
    parts = [
        f"{result['tasks']} episodes, seed {result['seed']}, {result['minutes']:.0f} minutes.",
        "Accuracy, log loss (nats) and expected calibration error:",
        *(
            f"**{measure}**\n\n" + measured(rows, lambda row, m=measure: interval(row[m]))
            for measure in MEASURES
        ),
        "Ours that was chosen less each method, paired by episode:",
        *(
            f"**{measure}, difference**\n\n"
            + measured(rows, lambda row, m=measure: interval(row["ours_minus_it"][m]))
            for measure in MEASURES
        ),
        "The trainings:",
        trainings(),
    ]
    readme = FOLDER / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(before + BEGIN + "\n" + "\n\n".join(parts) + "\n\n" + END + after)


if __name__ == "__main__":
    main()
