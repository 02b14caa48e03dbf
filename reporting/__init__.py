"""What does a person look at? Figures, the pictures of a run, its report."""
