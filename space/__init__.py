"""The Gradio app; `app.py` is the page, the front matter of `README.md` is the Space's."""
