"""The card template, and rendered cards of the models made with this project."""
