"""The tables and figures of the papers, and our own, from recipes: what is run, what came out, what was printed."""
