"""Surgery that is fitted to the model: given what goes, solve for what stands in, and write its tensors."""
