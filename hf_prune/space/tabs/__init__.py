"""The tabs of the page: which widgets there are and what they call; what they call is tested without them."""
