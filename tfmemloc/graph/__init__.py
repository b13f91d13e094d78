"""Reading and rebuilding the graphs of Keras models."""

from tfmemloc.graph.batch_norm import (
    batch_norms,
    keeps_own_statistics,
    with_own_batch_norm,
)
from tfmemloc.graph.cuts import Cut, cuts_before, stages
from tfmemloc.graph.groups import Groups, group_variables, layer_groups
from tfmemloc.graph.inputs import arranged, input_names
from tfmemloc.graph.memory_entries import memory_entries
from tfmemloc.graph.nodes import (
    IDS,
    Node,
    activation_bytes,
    all_nodes,
    consumers,
    ends_in_softmax,
    inputs_of,
    intercepted,
    is_functional,
    nodes,
    outputs_of,
    replay,
    single_tensor_places,
)
from tfmemloc.graph.outgoing import Reader, readers_of, rows_of
from tfmemloc.graph.rebuild import (
    cloned,
    compute_dtypes,
    flat_layers,
    fresh_inputs,
    inlined,
    used_inputs,
)
from tfmemloc.graph.sites import (
    NORMALIZATIONS,
    Site,
    block_sites,
    has_units,
    is_activation,
    is_normalization,
    unit_axis,
    unit_sites,
)
from tfmemloc.graph.tied_model import TiedModel
from tfmemloc.graph.tying import (
    tie_dropout,
    tie_plan,
    tied_layers,
    with_inference,
)
from tfmemloc.graph.untying import (
    gated_names,
    memory_variables,
    served_network,
    untie,
)
from tfmemloc.graph.weights import assign_weights, swapped_weights
