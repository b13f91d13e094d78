"""Exports a trained network for serving, without what it memorized.

  python -m binaries.export --run_dir=runs/demo/example_tied --out_dir=served

takes about 10 seconds on 2 CPU cores for the digits demo. Writes a SavedModel
that takes the network's inputs without example ids, and a model card with the
accuracies measured before and after the export. The SavedModel loads wherever
TensorFlow is installed:

  saved_model_cli show --dir served --all
"""

import pathlib

from . import flags

from tfmemloc import Membership, report, serving, storage
from tfmemloc.runs import Run

FLAGS = flags.FLAGS
flags.flags.DEFINE_string("run_dir", None, flags.RUN_HELP, required=True)
flags.flags.DEFINE_string(
    "out_dir", None, "New folder of the export.", required=True
)
flags.flags.DEFINE_enum(
    "inference",
    "drop",
    serving.INFERENCES,
    "drop leaves the memorization units out, expected scales them; plain "
    "exports a network without tied layers.",
)
flags.flags.DEFINE_bool(
    "prune", None, "Slice dropped units out; on by default if they are dropped."
)
flags.flags.DEFINE_bool(
    "fold", True, "Fold each BatchNorm into the layer before it."
)
flags.flags.DEFINE_bool(
    "recalibrate", False, "Recompute BatchNorm statistics first."
)
flags.flags.DEFINE_bool(
    "raw_pixels", False, "Take uint8 pixels; scale them as in training."
)
flags.flags.DEFINE_bool(
    "with_memorization",
    False,
    "Add a signature with the memorization units; they are then in the file.",
)
flags.flags.DEFINE_string(
    "audit",
    None,
    "For the card, what attackers find in networks that were made in the same "
    "way: the folder into which binaries.audit wrote.",
)
flags.flags.DEFINE_list(
    "formats", [], f"Further files: {', '.join(serving.FORMATS)}."
)
flags.flags.DEFINE_bool(
    "overwrite", False, "Replace an export that exists at --out_dir."
)
flags.define_download()


def main() -> None:
    """Exports, and prints the model card's table."""
    run, audit = Run.open(FLAGS.run_dir), _audit()
    path = serving.export_saved_model(
        run,
        FLAGS.out_dir,
        examples=run.examples(download=FLAGS.download),
        inference=FLAGS.inference,
        prune=FLAGS.prune,
        fold=FLAGS.fold,
        recalibrate=FLAGS.recalibrate,
        raw_pixels=FLAGS.raw_pixels,
        with_memorization=FLAGS.with_memorization,
        formats=FLAGS.formats,
        audit=audit,
        overwrite=FLAGS.overwrite,
    )
    card = storage.read_json(path / serving.CARD)
    print(report.text_table(card["accuracy"]))
    size, speed = card["size"], card["milliseconds_for_64"]
    print(
        f"{size['parameters_before']:,} parameters before, "
        f"{size['parameters_after']:,} after; a batch of 64 takes "
        f"{speed['before']:.2f} ms before, {speed['after']:.2f} ms after"
    )
    print(f"export: {path}")


def _audit() -> Membership | None:
    if FLAGS.audit is None:
        return None
    path = pathlib.Path(FLAGS.audit) / "membership"
    if not path.with_suffix(".json").exists():
        raise FileNotFoundError(
            f"--audit: there is no audit in {FLAGS.audit}. Expected the folder "
            "into which binaries.audit wrote. Received: one without "
            "membership.json."
        )
    return Membership.load(path)


if __name__ == "__main__":
    flags.run(main)
