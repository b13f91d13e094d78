"""Prints the configs that flags ask for, as the programs read them."""

import json

from binaries import config_flags, flags
from tfmemloc import configs

if __name__ == "__main__":
    config_flags.define_run_configs(with_dropout=False)
    flags.define_training_options()
    flags.define_run_flags("runs/nothing")
    flags.run(
        lambda: print(
            json.dumps(
                {
                    "data": configs.to_json(config_flags.data_config()),
                    "model": configs.to_json(
                        config_flags.model_config("example_tied")
                    ),
                    "training": configs.to_json(config_flags.train_config()),
                }
            )
        )
    )
