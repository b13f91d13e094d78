"""Trains four networks on partly wrong labels and shows what each kept.

  python -m binaries.localize --dataset=digits --run_dir=runs/demo

takes about two minutes on 2 CPU cores. Trains the network without dropout,
with standard dropout, sparse, and example-tied; drops the memorization units
of the last; writes summary.json, figures and a self-contained report.html into
--run_dir. Run again, it reuses what is finished.
"""

import platform

import keras
import tensorflow as tf

from binaries import flags
from tfmemloc import configs, report, storage
from tfmemloc.data import load
from tfmemloc.localization import localize, train_networks

flags.flags.DEFINE_bool(
    "recalibrate",
    False,
    "Also show the drop after BatchNorm statistics were recomputed with the "
    "memorization units off.",
)


def main() -> None:
    """Trains, measures, and writes summary, figures and report."""
    directory = flags.prepare_directory("settings.json")
    data, model, training = (
        flags.data_config(),
        flags.model_config(),
        flags.train_config(),
    )
    settings = {
        "data": configs.to_json(data),
        "model": configs.to_json(model),
        "training": configs.to_json(training),
    }
    with storage.lock_directory(directory):
        storage.write_json(directory / "settings.json", settings)
        examples = load(data, download=flags.FLAGS.download)
        runs = train_networks(
            directory,
            examples,
            data=data,
            model=model,
            training=training,
            strategy=flags.strategy(),
            tensorboard=flags.FLAGS.tensorboard,
        )
        result = localize(runs, examples, recalibrate=flags.FLAGS.recalibrate)
        result.save(directory / "localization")
        storage.write_json(
            directory / "summary.json",
            {
                "dataset": data.dataset,
                "config": settings,
                "rows": result.rows(),
            },
        )
        section = report.localization_section(
            result, {name: run.history for name, run in runs.items()}
        )
        _write_report(directory, data.dataset, [section])
    print(report.text_table(result.rows()))
    print(section.text)
    print(f"report: {directory / 'report.html'}")


def _write_report(directory, dataset, sections) -> None:
    """Writes report.html, and its figures as PNG beside it."""
    figures = directory / "figures"
    figures.mkdir(exist_ok=True)
    for section in sections:
        for name, (_, png) in section.figures.items():
            storage.write_atomically(
                figures / f"{name}.png", lambda file, png=png: file.write(png)
            )
    report.write_html(
        directory / "report.html",
        f"Where is the memory? {dataset}",
        sections,
        {
            "Command": flags.command_line("binaries.localize"),
            "Versions": f"TensorFlow {tf.__version__}, "
            f"Keras {keras.__version__}, Python {platform.python_version()}",
            "Machine": f"{platform.system()} {platform.machine()}, "
            f"{len(tf.config.list_physical_devices('GPU'))} GPUs",
        },
    )


if __name__ == "__main__":
    flags.define_data_flags()
    flags.define_model_flags(with_dropout=False)
    flags.define_training_flags()
    flags.define_run_flags("runs/localize")
    flags.run(main)
