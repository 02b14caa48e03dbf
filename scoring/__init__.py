"""How good is it? Scores of slices, of codes, of sets of samples; the search for copies."""
