"""Other forms of a finished folder: an adapter on the original's own repo, or 4-bit weights."""

from hf_prune.exporting.base_adapter import export_base_adapter
from hf_prune.exporting.nf4 import export_nf4
from hf_prune.exporting.output import push_export
from hf_prune.exporting.record import Export, is_export

__all__ = ["Export", "export_base_adapter", "export_nf4", "is_export", "push_export"]
