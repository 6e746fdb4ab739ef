"""The Space behind its page: plain functions that know nothing of Gradio, but for `tabs`, which draws them.

settings ─► visitor ─► pairs ─► cache ─► writing ─► parting ─► comparing ─► tabs ─► space/app.py
                                 │                                cutting ─┤
                               records ──────────────────────────► anatomy ─┤
                                                                    making ─┘
"""
