"""Modeling code of sliced models: registered when hf_prune is imported, and shipped with every sliced model.

The files are self-contained (torch and transformers alone), because they travel: `sliced.py` with the two files of one
family. A family says in `modeling_sliced_*.py` which parts of its blocks read the residual stream and which write to
it; that is all that the slicing code knows of it as well.
"""
