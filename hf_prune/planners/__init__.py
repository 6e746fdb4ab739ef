"""Planners: scores and a number of layers in, the layers that go out. None of them sees a model."""
