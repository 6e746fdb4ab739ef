"""Models whose blocks lack parts: their modeling code, and what makes them of stock models."""
