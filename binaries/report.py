"""Gathers finished runs, of any kind, into one report.

  python -m binaries.report --run_dirs=runs/demo
  python -m binaries.report --run_dirs='runs/demo?' --out_dir=runs/three_seeds

takes seconds. Writes a self-contained report.html and a report.md with its
figures beside it into --out_dir (the first directory). Main jobs
(binaries.localize) that differ in the seed alone are averaged, with intervals,
also as numbers.json; runs, sweeps and probes are shown as they are.
"""

import dataclasses
import glob
import os
import pathlib

from . import flags, gathering, output

from tfmemloc import report

FLAGS = flags.FLAGS
flags.flags.DEFINE_list(
    "run_dirs",
    None,
    "Directories that programs wrote, or patterns such as runs/demo*.",
    required=True,
)
flags.flags.DEFINE_string(
    "out_dir", None, "Where the report goes; default: the first directory."
)
flags.flags.DEFINE_string("title", None, "Title of the page.")


def main() -> None:
    """Finds, gathers, writes."""
    directories = _directories(FLAGS.run_dirs)
    out = pathlib.Path(FLAGS.out_dir or directories[0])
    sections, facts = [], {}
    jobs = [path for path in directories if gathering.is_main_job(path)]
    if len(jobs) > 1:
        seeds = _over_seeds(jobs)
        sections.append(report.section_of(seeds))
    # Of several main jobs, only the figures of the first are shown.
    shown = [path for path in directories if path not in jobs[1:]]
    for directory in shown:
        for section in gathering.sections_of(directory, out):
            title = section.title
            if len(shown) > 1:
                title = f"{directory}: {title}"
            sections.append(dataclasses.replace(section, title=title))
    for directory in directories:
        for name, text in gathering.facts_of(directory).items():
            many = len(directories) > 1
            facts[f"{name} of {directory}" if many else name] = text
    if not sections:
        raise ValueError(
            "Nothing to report in "
            f"{', '.join(map(str, directories))}. Expected directories that "
            "binaries.localize, train, sweep or a probe wrote."
        )
    if len(jobs) > 1:
        out.mkdir(parents=True, exist_ok=True)
        seeds.save(out / "numbers")
    page = output.write_report(
        out,
        FLAGS.title or f"Where is the memory? {directories[0].name}",
        sections,
        facts | {"Report": flags.command_line("binaries.report")},
    )
    for section in sections:
        output.print_section(section)
    print(f"report: {page}, {page.with_suffix('.md')}")


def _directories(patterns: list[str]) -> list[pathlib.Path]:
    """The folders that the patterns name, each once, in order."""
    found = []
    for pattern in patterns:
        paths = sorted(
            path for path in glob.glob(pattern) if os.path.isdir(path)
        )
        if not paths:
            raise ValueError(
                f"--run_dirs: there is no directory {pattern!r}. Expected "
                "directories that programs of tfmemloc wrote."
            )
        found += paths
    by_place = {
        pathlib.Path(path).resolve(): pathlib.Path(path) for path in found
    }
    return list(by_place.values())


def _over_seeds(jobs: list[pathlib.Path]) -> report.SeedSummary:
    """The numbers of several main jobs, which must be of one data set."""
    seeds = [gathering.seed_and_rest(path) for path in jobs]
    if any(rest != seeds[0][1] for _, rest in seeds):
        raise ValueError(
            "--run_dirs: main jobs with different settings cannot be averaged. "
            "Expected ones that differ in the seed alone. Received: "
            f"{', '.join(map(str, jobs))}. Make a report of each."
        )
    if len({seed for seed, _ in seeds}) < len(seeds):
        raise ValueError(
            "--run_dirs: two of the main jobs have the same seed. Received: "
            + ", ".join(
                f"{path} (seed {seed})"
                for path, (seed, _) in zip(jobs, seeds, strict=True)
            )
            + ". Name each seed once."
        )
    return report.SeedSummary.of(
        {str(path): gathering.numbers_of(path) for path in jobs}
    )


if __name__ == "__main__":
    flags.run(main)
