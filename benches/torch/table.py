"""Makes the tables of docs/performance.md from the figures of `compare.py`.

    python3 benches/torch/table.py figures.json                          # prints them
    python3 benches/torch/table.py figures.json --write docs/performance.md    # replaces what stands between the markers
"""

import argparse
import json
import pathlib
import re
import statistics

NAMES = {
    "loop": "hand-tuned torch loop",
    "closed form": "closed form in torch",
    "vmap": "torch.func.vmap",
    "ours": "Consortia",
}
WORKLOADS = ("W1", "W2", "W3", "W4")


def median(runs, key="updates_per_s"):
    return statistics.median(run[key] for run in runs)


def speed(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def row(cells):
    return "| " + " | ".join(cells) + " |"


def speeds(figures):
    """Who did how many updates a second, and by which variant."""
    measured = [workload for workload in WORKLOADS if workload in figures]
    lines = [row(["client updates a second", *measured]), "|---" * (len(measured) + 1) + "|"]
    for name in ("loop", "closed form", "vmap", "ours"):
        cells = []
        for workload in measured:
            runs = figures[workload]["runs"].get(name)
            cells.append(speed(median(runs)) if runs else "-")
        lines.append(row([NAMES[name], *cells]))
    for name in ("loop", "closed form", "vmap"):
        cells = []
        for workload in measured:
            runs = figures[workload]["runs"]
            if name not in runs:
                cells.append("-")
                continue
            cells.append(f"{median(runs['ours']) / median(runs[name]):.2f}")
        lines.append(row([f"Consortia over {NAMES[name]}", *cells]))
    key = "updates_per_processor_s"
    if all(run.get(key) for w in measured for name in ("ours", "loop") for run in figures[w]["runs"][name]):
        ratios = [median(figures[w]["runs"]["ours"], key) / median(figures[w]["runs"]["loop"], key) for w in measured]
        lines.append(row(["the same over the torch loop by processor time", *(f"{ratio:.2f}" for ratio in ratios)]))
    lines += ["", "The fastest variants of torch, processes x threads: " + "; ".join(chosen(figures, measured)) + "."]
    return lines


def chosen(figures, measured):
    for workload in measured:
        for name, runs in figures[workload]["runs"].items():
            if name != "ours":
                run = runs[0]
                yield f"{workload} {run['variant']} ({run['processes']} x {run['threads']})"


def steps(figures):
    """Milliseconds of a step, each side's median over the turns."""
    if "steps" not in figures:
        return []
    turns = figures["steps"]
    lines = [row(["one step, one thread, ms", "torch", "its variant", "Consortia", "torch over Consortia", "share of sgemm"])]
    lines.append("|---" * 6 + "|")
    for place, network in enumerate(turns[0]["torch"]["networks"]):
        name, batch = network["network"], network["batch_size"]
        every = [turn["torch"]["networks"][place]["variants"] for turn in turns]
        middle = {v: statistics.median(one[v]["median"] for one in every) for v in every[0]}
        best = min(middle, key=middle.get)
        ours = [
            found
            for turn in turns
            for found in turn["ours"]["networks"]
            if (found["network"], found["batch_size"]) == (name, batch)
        ]
        cells = [f"{name}, B={batch}", f"{1e3 * middle[best]:.3g}", best, "-", "-", "-"]
        if ours:
            own = statistics.median(found["seconds"]["median"] for found in ours)
            share = statistics.median(found["share_of_limit"] for found in ours)
            cells[3:] = [f"{1e3 * own:.3g}", f"{middle[best] / own:.2f}", f"{100 * share:.0f} %"]
        lines.append(row(cells))
    return lines


def profiles(figures):
    """Where the time of each workload goes."""
    measured = [w for w in WORKLOADS if figures.get(w, {}).get("scaling", {}).get("profile")]
    if not measured:
        return
    yield row(["core microseconds an update", *measured])
    yield "|---" * (len(measured) + 1) + "|"
    phases = {w: figures[w]["scaling"]["profile"]["phases"] for w in measured}
    for place, phase in enumerate(phases[measured[0]]):
        cells = []
        for workload in measured:
            one = phases[workload][place]
            cells.append(f"{1e6 * one['core_seconds_per_update']:,.1f} ({100 * one['share']:.1f} %)")
        yield row([phase["phase"], *cells])


def layers(figures):
    """What each layer of the convolutional network takes."""
    turns = figures.get("steps", [])
    found = [n for turn in turns for n in turn["ours"]["networks"] if (n["network"], n["batch_size"]) == ("cnn", 10)]
    profile = found[-1].get("profile") if found else None
    if not profile:
        return
    yield row(["one step of the CNN, B=10, one thread, microseconds", "forward", "backward and SGD"])
    yield "|---|---|---|"
    for layer in profile["layers"]:
        yield row([layer["layer"], f"{1e6 * layer['forward_seconds']:,.0f}", f"{1e6 * layer['backward_seconds']:,.0f}"])
    yield row(["records, loss", f"{1e6 * profile['other_seconds']:,.0f}", ""])


def wire(figures):
    """The lines of `consortia bench wire`, if it was run."""
    found = figures.get("wire")
    if not found:
        return
    for way in ("down", "up"):
        share = found["one_site"][way]["share_of_bare"]
        yield f"100 MB, one client, {way}, of raw quinn", "85 %", "95 %", f"{100 * share:.0f} %"
    name = "8 clients up at once, of the slower of network and the server's work"
    yield name, "70 %", "85 %", f"{100 * found['share_of_limit']:.0f} %"


def lines_of_acceptance(figures):
    """What was wanted of each line, and what was measured."""

    def ours(workload, key):
        return median(figures[workload]["runs"]["ours"], key)

    def theirs(workload, name, key="updates_per_s"):
        return median(figures[workload]["runs"][name], key)

    def ratio(workload, name):
        value = ours(workload, "updates_per_s") / theirs(workload, name)
        return f"{value:.2f} times ({speed(ours(workload, 'updates_per_s'))} a second)"

    there = [workload for workload in WORKLOADS if workload in figures]
    wanted = {"W1": ("15", "30"), "W2": ("1.5", "2.5"), "W3": ("6", "8"), "W4": ("5", "7")}
    for workload in there:
        yield f"{workload} over the hand-tuned torch loop", *wanted[workload], ratio(workload, "loop")
    if "W1" in there:
        yield "W1 over torch's vmap", "", "3", ratio("W1", "vmap")
    if "W2" in there:
        yield "W2, share of the sgemm limit", "75 %", "", f"{100 * ours('W2', 'share_of_limit'):.0f} %"
    if {"W3", "W4"} <= set(there):
        value = ours("W4", "updates_per_s") / ours("W3", "updates_per_s")
        yield "W4 over our own W3", "0.9", "", f"{value:.2f}"
    if "steps" in figures:
        for line in steps(figures)[2:]:
            name, _, _, _, over, _ = [cell.strip() for cell in line.strip("|").split("|")]
            if name.startswith(("lstm", "resnet")):
                yield f"a step of {name}, torch over Consortia", "1.0", "1.5", over
    if "W3" in there:
        share = ours("W3", "peak_rss_bytes") / theirs("W3", "loop", "peak_rss_bytes")
        yield "peak memory on W3, of torch's", "1/5", "1/10", f"1/{1 / share:.1f} ({ours('W3', 'peak_rss_bytes') / 1e6:.0f} MB)"
        first = ours("W3", "seconds_to_first_aggregate")
        other = theirs("W3", "loop", "seconds_to_first_aggregate")
        yield "start to first aggregate on W3", "1 s", "0.3 s", f"{first:.2f} s (torch {other:.1f} s)"
    for workload in there[:3]:
        yield f"{workload}, two threads over one", "1.8", "1.95", f"{figures[workload]['scaling']['scaling']:.2f}"
    for workload in ("W2", "W3"):
        if workload in there:
            yield f"{workload}, time outside training", "5 %", "1 %", f"{100 * ours(workload, 'share_outside_training'):.1f} %"
    yield from wire(figures)


def tables(figures):
    if not any(workload in figures for workload in WORKLOADS):
        raise SystemExit("there are no figures of W1 to W4 yet; run compare.py for one of them")
    machine = next(figures[w]["runs"]["ours"][0]["machine"] for w in WORKLOADS if w in figures)
    loads = [run["load"][0] for w in WORKLOADS if w in figures for runs in figures[w]["runs"].values() for run in runs]
    yield (
        f"{figures['date']}; {machine['processor']}, {machine['cores']} cores, {', '.join(machine['instructions'])}; "
        f"load {min(loads):.1f} to {max(loads):.1f}, of which the measured program is up to {machine['cores']}. Medians; "
        "ratios are of runs that took turns."
    )
    yield ""
    yield from speeds(figures)
    yield ""
    yield from steps(figures)
    yield ""
    yield row(["", "at least", "aim", "measured"])
    yield "|---|---|---|---|"
    for line in lines_of_acceptance(figures):
        yield row(line)
    yield ""
    yield from profiles(figures)
    yield ""
    yield from layers(figures)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", type=pathlib.Path)
    parser.add_argument("--write", type=pathlib.Path)
    args = parser.parse_args()
    text = "\n".join(tables(json.loads(args.figures.read_text())))
    if args.write is None:
        print(text)
        return
    page = args.write.read_text()
    marked = re.compile(r"(<!-- figures begin -->\n).*?(\n<!-- figures end -->)", re.DOTALL)
    if not marked.search(page):
        raise SystemExit(f"{args.write} has no markers <!-- figures begin --> and <!-- figures end -->")
    args.write.write_text(marked.sub(lambda found: found[1] + text + found[2], page))


if __name__ == "__main__":
    main()
