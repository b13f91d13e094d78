"""Trains one network into a run directory; resumes a killed run.

  python -m binaries.train --dataset=digits --dropout=example_tied \\
    --run_dir=runs/digits

takes about 25 seconds on 2 CPU cores and ends near 100 % noisy accuracy with
the memorization units on (tied), below 2 % with them off (drop).
"""

from . import config_flags, flags, protocol, workers

from tfmemloc import configs, load, report
from tfmemloc.training.loop import train


def main() -> None:
    """Trains and prints the accuracy of each subset."""
    if workers.is_parent():
        if flags.FLAGS.download:  # Once, before each of them would.
            load(config_flags.data_config(), download=True)
        workers.start("train", flags.prepare_directory("config.json"))
        return
    strategy = workers.strategy() if workers.is_one() else flags.strategy()
    if workers.is_first():
        directory = flags.prepare_directory("config.json")
    else:
        directory = flags.run_directory()
    run = train(
        directory,
        data=config_flags.data_config(),
        model=protocol.applied(config_flags.model_config()),
        training=config_flags.train_config(),
        strategy=strategy,
        tensorboard=flags.FLAGS.tensorboard,
        on_epoch_end=flags.after_each_epoch(),
        download=flags.FLAGS.download,
    )
    flags.show_the_end(run)
    last = run.history[-1]
    rows = [
        {"inference": inference, **accuracy}
        for inference, accuracy in last["accuracy"].items()
    ]
    print(f"epoch {last['epoch']}, loss {last['loss']:.4f}")
    print(report.text_table(rows))
    print(f"run: {run.directory}")


if __name__ == "__main__":
    protocol.define(configs.ModelConfig)
    config_flags.define_run_configs(with_dropout=True)
    flags.define_training_options()
    workers.define_workers()
    flags.define_run_flags("runs/train")
    flags.run(main)
