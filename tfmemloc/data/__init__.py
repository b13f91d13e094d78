"""Examples that carry ids, where they come from, and batches of them."""

from tfmemloc.data.arrays import from_arrays
from tfmemloc.data.augmentation import make_augmenter
from tfmemloc.data.batches import (
    attach_ids,
    make_batches,
    steps_per_epoch,
    switch_memory_off,
)
from tfmemloc.data.chunks import Chunk, as_arrays, chunk_at, chunks
from tfmemloc.data.examples import (
    Examples,
    check_fingerprint,
    input_kinds,
    places_of,
)
from tfmemloc.data.ids import stable_ids
from tfmemloc.data.kinds import kind_of, scale_pixels
from tfmemloc.data.labels import (
    add_label_noise,
    correct_labels,
    random_subset,
    read_pairs,
    set_labels,
    split_by_score,
)
from tfmemloc.data.sources import count_labels, count_train, is_own, load
