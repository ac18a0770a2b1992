"""Small programs, each run by the interpreter of one library: JSON in, JSON out."""
