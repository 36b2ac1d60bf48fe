"""gpu-check.json and gpu-check.md."""

import json
import math
import os
import time


COMPARING = ("ops", "stages", "training", "sanitizer")


def exit_code(records):
    """0: what was compared agrees; 1: something disagrees, or one of our programs failed; 2: nothing was done of what was asked, or compared.

    >>> part = lambda name, result: {"part": name, "result": result}
    >>> exit_code([part("ops", "agrees"), part("training", "not run"), part("lora", "measured")])
    0
    >>> exit_code([part("ops", "agrees"), part("lora", "failed")])
    1
    >>> exit_code([part("build", "measured"), part("ops", "not run")]), exit_code([part("build", "not run")])
    (2, 2)
    >>> exit_code([part("build", "measured"), part("attention", "measured")])
    0
    """
    results = [record["result"] for record in records]
    compared = [record["result"] for record in records if record["part"] in COMPARING]
    done = "agrees" in compared if compared else "measured" in results
    return 1 if "failed" in results else 0 if done else 2


def verdict(records):
    names = lambda result: ", ".join(record["part"] for record in records if record["result"] == result)
    compared = any(record["part"] in COMPARING for record in records)
    words = {0: "what was compared agrees" if compared else "measured", 1: f"failed: {names('failed')}", 2: "nothing was compared"}[exit_code(records)]
    return words + (f"; not run: {names('not run')}" if names("not run") else "")


def finite(value):
    """As JSON can hold it.

    >>> finite({"a": [1.0, float("inf")]})
    {'a': [1.0, 'inf']}
    """
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def cell(value):
    """
    >>> cell(True), cell(None), cell(0.000123456), cell(1234.5678), cell("a|b")
    ('yes', '', '0.000123', '1235', 'a/b')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "/").replace("\n", " ")


def table(rows):
    """Rows of the same part in one table, with every column that one of them has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns)] + [[cell(row.get(column)) for column in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def markdown(options, machine, records):
    title = "# gpu-check" + (" on the CPU, with tiny shapes: this proves the script, nothing of a GPU" if options.device == "cpu" else "")
    lines = [title, "", f"{time.strftime('%Y-%m-%d %H:%M')}, {options.device}{', quick' if options.quick else ''}: {verdict(records)}.", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items()]
    overview = [{key: record.get(key) for key in ("part", "result", "seconds", "budget_s", "why")} for record in records]
    lines += [""] + table(overview)
    for record in records:
        if record["rows"] or record["notes"]:
            lines += ["", f"## {record['part']}"] + (table(record["rows"]) if record["rows"] else []) + [f"- {note}" for note in record["notes"]]
    return "\n".join(lines) + "\n"


def write(options, machine, records):
    record = {"device": options.device, "quick": options.quick, "machine": machine, "parts": records, "exit_code": exit_code(records)}
    for name, text in (("gpu-check.json", json.dumps(finite(record), indent=1) + "\n"), ("gpu-check.md", markdown(options, machine, records))):
        aside = options.out / f".{name}"
        aside.write_text(text)
        os.replace(aside, options.out / name)
