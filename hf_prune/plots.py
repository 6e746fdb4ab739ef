"""The pictures of records, under one name; each family has its file in `hf_prune.plotting`."""

from hf_prune.pictures import (
    COMPARISON_FILE,
    IMPORTANCE_FILE,
    LAYERS_FILE,
    PLOT_FILE,
    RECOVERY_FILE,
    WIDTHS_FILE,
)
from hf_prune.plotting.comparison import plot_comparison
from hf_prune.plotting.distances import plot_distances, plot_importance, windows_matrix
from hf_prune.plotting.layers import plot_layer_map, plot_widths
from hf_prune.plotting.recovery import plot_recovery

__all__ = [
    "COMPARISON_FILE",
    "IMPORTANCE_FILE",
    "LAYERS_FILE",
    "PLOT_FILE",
    "RECOVERY_FILE",
    "WIDTHS_FILE",
    "plot_comparison",
    "plot_distances",
    "plot_importance",
    "plot_layer_map",
    "plot_recovery",
    "plot_widths",
    "windows_matrix",
]
