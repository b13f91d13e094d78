"""Prints the configs that flags ask for, as the programs read them."""

import json

from binaries import flags
from tfmemloc import configs

if __name__ == "__main__":
    flags.define_data_flags()
    flags.define_model_flags(with_dropout=False)
    flags.define_training_flags()
    flags.define_run_flags("runs/nothing")
    flags.run(
        lambda: print(
            json.dumps(
                {
                    "data": configs.to_json(flags.data_config()),
                    "model": configs.to_json(flags.model_config()),
                    "training": configs.to_json(flags.train_config()),
                }
            )
        )
    )
