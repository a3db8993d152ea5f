"""Tables of papers and of the data at hand: a table = data x split x models x head x metric, one command each."""
