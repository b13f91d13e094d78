"""Measures which examples' gradients move which layers, epoch by epoch.

  python -m binaries.account_gradients --run_dir=runs/demo/standard

takes about 20 seconds on 2 CPU cores for the 31 saved epochs of the digits
demo. Writes gradient_accounting.npz and .json, figures and report.html into
--out_dir (the run's folder). While the wrong labels are learned, expect the
aggregate gradient of the 10 % noisy examples to be about as long as that of all
clean ones, and the cosine between the two to be negative.
"""

from . import config_flags, flags, output

from tfmemloc import AccountingConfig, Run, account_gradients

FLAGS = flags.FLAGS
flags.define_probe_flags()
config_flags.define(AccountingConfig)


def main() -> None:
    """Accounts, writes, prints."""
    run = Run.open(FLAGS.run_dir)
    result = account_gradients(
        run,
        run.examples(download=FLAGS.download),
        config_flags.read(AccountingConfig),
    )
    output.write_result(
        result, "gradient_accounting", "binaries.account_gradients"
    )


if __name__ == "__main__":
    flags.run(main)
