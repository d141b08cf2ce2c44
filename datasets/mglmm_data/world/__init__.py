"""The procedural world: scenes with exact masks, and samples for every task made from them."""
