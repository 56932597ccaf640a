"""Every process: what happens, as typed facts, and who is told of them."""
