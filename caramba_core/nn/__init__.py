"""The torch side: modules from a graph, their caches, and the weights that are read into them."""
