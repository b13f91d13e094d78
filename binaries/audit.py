"""Audits what networks still remember: who was in the training set?

  python -m binaries.sweep --grid=subset_seed=0..7 \\
    --grid=subset_complement=false,true --over=subset_seed \\
    --base="--dataset=digits --subset_ratio=0.5 --heldout=0.1 --dropout=none" \\
    --run_dir=runs/halves/standard
  python -m binaries.audit --run_dir=runs/halves

trains sixteen networks on random halves (about five minutes on 2 CPU cores),
and attacks each with the others as shadows. Each folder in --run_dir that is a
sweep is a kind of network; add one with --dropout=example_tied to compare. With
--edit each network is also attacked after a removal by curvature.

  python -m binaries.audit --confidences=mine.npz --out_dir=runs/audit

takes confidences from any framework: arrays `phi` [models, examples], the logit
of the given label's probability, and `member` [models, examples] bool; perhaps
`subset` [examples] names. Writes audit.json, audit.html and audit.md.
"""

import pathlib

from . import config_flags, flags, output, workers

from tfmemloc import (
    CurvatureConfig,
    Membership,
    MembershipConfig,
    Run,
    audit_membership,
    confidences_of_runs,
    remove_memory,
    report,
    storage,
)

FLAGS = flags.FLAGS
config_flags.define(MembershipConfig)
flags.flags.DEFINE_string(
    "run_dir", None, "Folder of sweeps over subset_seed, one for each network."
)
flags.flags.DEFINE_string(
    "confidences", None, "File .npz with the arrays phi and member."
)
flags.flags.DEFINE_string(
    "out_dir", None, "Where the audit goes; default: --run_dir."
)
flags.flags.DEFINE_string(
    "edit",
    "",
    "Name of a network, such as standard, that is also attacked after a "
    "removal by curvature; the shadows are edited in the same way.",
)
workers.define_workers(
    "Share the networks of --run_dir between so many processes on this machine"
)


def main() -> None:
    """Gathers confidences, attacks, writes the document."""
    if bool(FLAGS.run_dir) == bool(FLAGS.confidences):
        raise ValueError(
            "Expected --run_dir, a folder of sweeps on random halves, or "
            "--confidences, a file. Received: "
            + ("both." if FLAGS.run_dir else "neither.")
        )
    if not (FLAGS.out_dir or FLAGS.run_dir):
        raise ValueError(
            "--out_dir is missing. Expected a folder for the audit."
        )
    out = pathlib.Path(FLAGS.out_dir or FLAGS.run_dir)
    config = config_flags.read(MembershipConfig)
    if workers.are_used() and not FLAGS.run_dir:
        raise ValueError(
            "Workers share the networks of --run_dir. Expected it, or one "
            "process. Received: --confidences."
        )
    if workers.begins("audit", out):
        return
    if not workers.is_first():
        _confidences(out)
        return
    result = _of_runs(config, out) if FLAGS.run_dir else _of_file(config)
    out.mkdir(parents=True, exist_ok=True)
    with storage.lock_directory(out):
        write_audit(out, result)


def write_audit(out: pathlib.Path, result: Membership) -> None:
    """Writes audit.json, and the document as HTML and Markdown."""
    facts = output.facts("binaries.audit")
    result.save(out / "membership")
    storage.write_json(
        out / "audit.json",
        {"facts": facts, "rows": result.rows(), "parts": result.all_rows()},
    )
    sections = document(result)
    page = output.write_report(
        out,
        "What do these networks still remember?",
        sections,
        facts,
        name="audit",
    )
    output.print_section(sections[1])
    print(f"audit: {page}, {out / 'audit.json'}")


def document(result: Membership) -> list[report.Section]:
    """What was tested, the results, and their limits in plain words."""
    tested = (
        f"{int(result.shadows.max())} networks of each kind, each trained on a "
        "random part of the examples: "
        f"{', '.join(result.networks)}. Each in turn was attacked with all "
        "others of its kind as shadows, so the attacker knows how the networks "
        "were made, removals included, holds the data, and sees the "
        "probability that the network gives to each example's label: "
        f"{', '.join(result.attacks)}. An example counts as remembered where "
        "the attack tells it from those that the network was not trained on."
    )
    limits = (
        "An attacker with more shadow networks, or who sees the weights, may "
        "find more. The intervals are those of the share of members found; "
        "pairs of one example with several networks are not independent, and "
        "the threshold is estimated, so that the truth is somewhat less "
        "certain. A network that no attack here tells apart is not proven to "
        "be private. Behaviours called tied need the example's id, which an "
        "attacker who holds the data may have: they bound what an attack on "
        "the units of an example could find."
    )
    return [
        report.Section("What was tested, and who attacks", tested),
        report.section_of(result),
        report.Section("Limits", limits),
    ]


def _of_file(config: MembershipConfig) -> Membership:
    """The audit of confidences from elsewhere."""
    path = pathlib.Path(FLAGS.confidences)
    if not path.exists():
        raise FileNotFoundError(
            f"--confidences: there is no file {path}. Expected an .npz with "
            "the arrays phi and member."
        )
    arrays = storage.read_arrays(path)
    missing = {"phi", "member"} - set(arrays)
    if missing:
        raise ValueError(
            f"{path} lacks {' and '.join(sorted(missing))}. Expected the "
            "arrays phi [models, examples] and member [models, examples] bool. "
            f"Received: {', '.join(arrays) or 'none'}."
        )
    return audit_membership(
        {path.stem: arrays["phi"]},
        arrays["member"],
        config,
        subset=arrays.get("subset"),
    )


def _of_runs(config: MembershipConfig, out: pathlib.Path) -> Membership:
    """The audit of the sweeps in a folder."""
    confidences, member, examples = _confidences(out)
    return audit_membership(confidences, member, config, subset=examples.subset)


def _confidences(out: pathlib.Path):
    """Of the networks in --run_dir, and of edited ones; see the library."""
    runs = runs_in(pathlib.Path(FLAGS.run_dir))
    made = {}
    if FLAGS.edit:
        if FLAGS.edit not in runs:
            raise ValueError(
                f"--edit must be one of {', '.join(runs)}. Received: "
                f"{FLAGS.edit!r}."
            )
        made[f"{FLAGS.edit} edited"] = (
            FLAGS.edit,
            lambda run, examples: remove_memory(
                run, examples, CurvatureConfig(refit_epochs=0)
            )[0],
        )
    with workers.shared(out / "shared"):
        return confidences_of_runs(runs, made=made, progress=True)


def runs_in(directory: pathlib.Path) -> dict[str, list[Run]]:
    """The runs on subsets in a folder: name of a network -> its runs.

    The folder is one sweep, or holds one for each network.

    Raises:
        ValueError: there is none.
    """
    folders = [directory, *sorted(p for p in directory.glob("*") if p.is_dir())]
    found: dict[str, list[Run]] = {}
    for folder in folders:
        runs = [
            Run.open(path.parent)
            for path in sorted(folder.glob("*/config.json"))
        ]
        runs = [run for run in runs if run.data and run.data.subset_ratio < 1]
        if runs:
            found[folder.name] = runs
    if not found:
        raise ValueError(
            f"{directory} holds no runs on random parts of the data. Expected "
            "those of a sweep with --subset_ratio=0.5 over subset_seed; see "
            "--help."
        )
    return found


if __name__ == "__main__":
    flags.run(main)
